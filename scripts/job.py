"""What a training works on: data and its split, the graph's input, net, loss, optimizer."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from models.card import ImageInput, LossSpec, TaskName
from models.errors import InvalidInput
from models.image import decode_image
from models.nets.export import ServedNet
from models.nets.losses import sigmoid_focal_loss, softmax_focal_loss
from models.nets.registry import build_net, set_prior_bias
from models.nets.weights import load_weights
from scripts.balance import choose_alpha, count_classes, encode_targets, format_counts
from scripts.batches import Store, open_store
from scripts.config import RUN_FOLDER, TrainConfig
from scripts.readers import DataSet, Sample, read_dataset
from scripts.splits import split_dataset

Criterion = Callable[[Tensor, Tensor], Tensor]
_SHOWN = 8


@dataclass(frozen=True)
class Parts:
    """The data of a training."""

    data: DataSet
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    counts: NDArray[np.int64]
    spec: ImageInput


@dataclass(frozen=True)
class Job:
    """All that does not change while training runs, but for the weights within.

    `observe` is told of every step which training images were seen and their logits.
    """

    config: TrainConfig
    parts: Parts
    folder: Path
    device: torch.device
    served: ServedNet
    loss: LossSpec
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    train_store: Store
    val_store: Store
    targets: Tensor
    val_targets: NDArray[Any]
    fingerprint: str
    observe: Callable[[NDArray[np.int64], Tensor], None] = lambda _indices, _logits: None


def read_parts(config: TrainConfig) -> Parts:
    """Reads and splits the data, says what it holds, and chooses the input."""
    if config.data is None:
        raise InvalidInput("DATA is missing")
    data = read_dataset(
        config.data, task=config.task, labels=config.labels or None, on_bad_image=config.on_bad_image
    )  # fmt: skip
    train, val = split_dataset(data, fraction=config.validation, seed=config.seed)
    if len(train) < 2:
        raise InvalidInput("training needs two images or more")
    counts = count_classes(train, len(data.labels))
    say(f"{data.task}, {len(train)} training and {len(val)} validation images, {len(data.skipped)} left out")
    for skipped in data.skipped[:_SHOWN]:
        say(f"  left out: {skipped.origin}: {skipped.reason}")
    say(format_counts(data.labels, counts, count_classes(val, len(data.labels))))
    return Parts(data, train, val, counts, choose_input(config, train[0]))


def choose_input(config: TrainConfig, first: Sample) -> ImageInput:
    """The graph's input: as asked for; auto for the small net: the first image's size if that is at most 64 pixels."""
    if config.size is not None:
        height, width = config.size
    elif config.net != "small":
        height = width = 224
    else:
        height, width = decode_image(first.path.read_bytes()).shape[:2]
        if not 8 <= min(height, width) <= max(height, width) <= 64:
            height = width = 64
    return ImageInput(height=height, width=width, resize=config.resize)


def choose_device(name: str) -> torch.device:
    """CUDA where it is there, or what was asked for."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda: torch sees no CUDA device here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def build_job(config: TrainConfig, parts: Parts, device: torch.device, fingerprint: str | None = None) -> Job:
    """Net, loss and optimizer, and the images decoded; the data is hashed where its fingerprint is not known."""
    torch.manual_seed(config.seed)
    task, labels = parts.data.task, parts.data.labels
    alpha = choose_alpha(config.alpha, config.alpha_beta, task, parts.counts, len(parts.train))
    loss = LossSpec(gamma=config.gamma, alpha=alpha, label_smoothing=config.label_smoothing)
    served = ServedNet(build_started_net(config, parts), parts.spec)
    served.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Job(
        config=config,
        parts=parts,
        folder=(config.out or Path()) / RUN_FOLDER,
        device=device,
        served=served,
        loss=loss,
        criterion=build_criterion(task, loss),
        optimizer=build_optimizer(config, served),
        train_store=open_store(parts.train, parts.spec, config.cache_mb),
        val_store=open_store(parts.val, parts.spec, config.cache_mb),
        targets=torch.from_numpy(encode_targets(parts.train, task, len(labels))).to(device),
        val_targets=encode_targets(parts.val, task, len(labels)),
        fingerprint=parts.data.fingerprint() if fingerprint is None else fingerprint,
    )


def build_started_net(config: TrainConfig, parts: Parts) -> nn.Module:
    """The net with its first weights; sigmoid outputs that start fresh start at the class priors."""
    task = parts.data.task
    net = build_net(config.net, 1 if task == "binary" else len(parts.data.labels))
    fresh = True
    if config.weights is not None:
        report = load_weights(net, config.weights)
        fresh = bool(report.skipped)
        say(report.describe())
    if task != "multiclass" and fresh:
        prior = np.clip(parts.counts / len(parts.train), 1e-4, 1 - 1e-4).tolist()
        set_prior_bias(net, prior[1:] if task == "binary" else prior)
    return net


def build_criterion(task: TaskName, loss: LossSpec) -> Criterion:
    """The mean focal loss of a batch: per image; for sigmoid tasks summed over an image's labels."""
    alpha = torch.tensor(loss.alpha) if isinstance(loss.alpha, list) else loss.alpha
    form, reduction = (softmax_focal_loss, "mean") if task == "multiclass" else (sigmoid_focal_loss, "batchmean")

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        return form(
            logits, targets, gamma=loss.gamma, alpha=alpha, label_smoothing=loss.label_smoothing, reduction=reduction
        )

    return criterion


def build_optimizer(config: TrainConfig, served: nn.Module) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum; biases and norms are not decayed."""
    weights = [p for p in served.parameters() if p.ndim > 1]
    others = [p for p in served.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)


def say(text: str) -> None:
    """A line for the person, on stderr; progress bars make room for it."""
    tqdm.write(text, file=sys.stderr)
