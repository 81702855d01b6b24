"""What the loop of train.py needs of a kind of model, and what the kinds share."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.errors import FocalserveError, InvalidInput
from models.fit import Pixels
from models.nets.graphs import Export
from models.nets.served import Served
from scripts.batches import Indices
from scripts.config import TrainConfig
from scripts.evaluate import Score


class Diverged(FocalserveError):
    """The loss is no number any more."""


class Recipe(Protocol):
    """A kind of model in training; all that does not change while it runs, but for the weights within."""

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        ...

    @property
    def folder(self) -> Path:
        """Of the run: checkpoints, and what is kept of every epoch."""
        ...

    @property
    def served(self) -> Served:
        """The net that learns."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the net; a group's `share` multiplies its learning rate."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the data."""
        ...

    @property
    def count(self) -> int:
        """Training images."""
        ...

    def load(self, batches: Sequence[Indices]) -> Iterator[tuple[Indices, Pixels]]:
        """Training images (n, H, W, 3) by their positions, batch by batch."""
        ...

    def batch_loss(self, indices: Indices, pixels: Pixels, seed: Sequence[int]) -> Tensor:
        """The loss of a batch; all chance in it follows from the seed (seed, epoch, batch)."""
        ...

    def names(self, indices: Indices) -> list[str]:
        """Files of training images, relative to the data."""
        ...

    def validate(self, epoch: int) -> dict[str, Score]:
        """The scores of an epoch, counted from 1; `config.monitor` names one of them."""
        ...

    def describe(self, scores: dict[str, Score]) -> str:
        """The scores in a few words."""
        ...

    def export(self, facts: dict[str, Any], epochs: int) -> Export:
        """Measures and exports the weights within.

        Args:
            facts: those of `ModelCard` that do not depend on the kind of model.
            epochs: how many were trained.
        """
        ...


def use_threads(count: int) -> None:
    """Has torch compute in so many CPU threads; 0: what OMP_NUM_THREADS says, which torch has read, else all cores."""
    if count or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count or len(os.sched_getaffinity(0)))


def choose_device(name: str) -> torch.device:
    """CUDA where it is there, or what was asked for."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda: torch sees no CUDA device here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def build_optimizer(config: TrainConfig, parts: Sequence[tuple[nn.Module, float]]) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum; biases and norms are not decayed.

    Args:
        config: the settings.
        parts: of the net, each with the share of the learning rate that it learns at; what is frozen stays out.
    """
    groups: list[dict[str, Any]] = []
    for module, share in parts:
        learning = [p for p in module.parameters() if p.requires_grad]
        weights, others = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
        groups.append({"params": weights, "weight_decay": config.weight_decay, "share": share})
        groups.append({"params": others, "weight_decay": 0.0, "share": share})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
