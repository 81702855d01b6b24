"""The recipe of a classifier: data and its split, the graph's input, net, loss, validation, calibration, export."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.calibration import calibrate
from models.card import ImageInput, LossSpec, TaskName
from models.errors import InvalidInput
from models.fit import Pixels
from models.image import decode_image
from models.nets.export import ServedNet, export_net
from models.nets.graphs import Export
from models.nets.losses import sigmoid_focal_loss, softmax_focal_loss
from models.nets.registry import build_net, set_prior_bias
from models.nets.weights import load_weights
from scripts.balance import choose_alpha, count_classes, encode_targets, format_counts
from scripts.batches import Indices, Store, augment, open_store, prefetch
from scripts.config import RUN_FOLDER, TrainConfig
from scripts.evaluate import HeldOut, Score, evaluate, format_report, score_epoch
from scripts.heldout import learn_label_noise, store_epoch
from scripts.messages import say, say_left_out
from scripts.readers import DataSet, Sample, read_dataset
from scripts.recipes import Diverged, build_optimizer
from scripts.splits import split_dataset

Criterion = Callable[[Tensor, Tensor], Tensor]
_EVALUATED_AT_ONCE = 256


@dataclass(frozen=True)
class Parts:
    """The data of a training."""

    data: DataSet
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    counts: NDArray[np.int64]
    spec: ImageInput


@dataclass(frozen=True)
class ClassifierJob:
    """A classifier in training: see `scripts.recipes.Recipe`.

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

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.parts.train)

    def load(self, batches: Sequence[Indices]) -> Iterator[tuple[Indices, Pixels]]:
        """Training images by their positions, batch by batch."""
        return prefetch(self.train_store, batches)

    def batch_loss(self, indices: Indices, pixels: Pixels, seed: Sequence[int]) -> Tensor:
        """The loss of a batch."""
        config = self.config
        images = self.served.normalize(torch.from_numpy(pixels).to(self.device, non_blocking=True))
        logits = self.served.net(augment(images, flip=config.flip, crop=config.crop, seed=seed))
        self.observe(indices, logits.detach())
        return self.criterion(logits, self.targets[torch.from_numpy(indices).to(self.device)])

    def names(self, indices: Indices) -> list[str]:
        """Files of training images."""
        return [self.parts.data.relative(self.parts.train[k]) for k in indices.tolist()]

    def validate(self, epoch: int) -> dict[str, Score]:
        """Macro-F1 and negative log-likelihood; the answers are kept for what is learnt of the labels' noise."""
        held = predict_validation(self)
        store_epoch(self.folder, epoch, held, self.loss)
        return score_epoch(held, self.config.gamma)

    def describe(self, scores: dict[str, Score]) -> str:
        """The scores in a few words."""
        return f"validation macro-F1 {scores['macro_f1'].value:.4f}, nll {scores['nll'].value:.4f}"

    def export(self, facts: dict[str, Any], epochs: int) -> Export:
        """Calibrates on the validation part, measures, and exports."""
        parts = self.parts
        held = predict_validation(self)
        calibration = calibrate(held.logits, held.targets, held.activation, self.config.gamma)
        report = evaluate(held, parts.data.labels, parts.counts, len(parts.train), self.loss, calibration)
        say(f"temperature {calibration.temperature:.3f}, {len(parts.val)} validation images:")
        say(format_report(report))
        more = {
            "task": parts.data.task,
            "labels": list(parts.data.labels),
            "input": parts.spec,
            "loss": self.loss,
            "calibration": calibration,
            "classes": report.classes,
            "label_noise": learn_label_noise(self.folder, epochs, held, self.loss),
            "metrics": report.metrics,
        }
        images = self.val_store.take(np.arange(min(32, len(parts.val))))
        return export_net(self.served.net, {**facts, **more}, images)


def read_classes(config: TrainConfig) -> Parts:
    """Reads and splits the data, says what it holds, and chooses the input."""
    if config.data is None:
        raise InvalidInput("DATA is missing")
    if config.task == "detection":
        raise InvalidInput("boxes are for a detector")
    data = read_dataset(
        config.data, task=config.task, labels=config.labels or None, on_bad_image=config.on_bad_image
    )  # fmt: skip
    train, val = split_dataset(data, fraction=config.validation, seed=config.seed)
    if len(train) < 2:
        raise InvalidInput("training needs two images or more")
    counts = count_classes(train, len(data.labels))
    say(f"{data.task}, {len(train)} training and {len(val)} validation images, {len(data.skipped)} left out")
    say_left_out(data.skipped)
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


def build_classifier(
    config: TrainConfig, parts: Parts, device: torch.device, fingerprint: str | None = None
) -> ClassifierJob:
    """Net, loss and optimizer, and the images decoded; the data is hashed where its fingerprint is not known."""
    torch.manual_seed(config.seed)
    task, labels = parts.data.task, parts.data.labels
    alpha = choose_alpha(config.alpha, config.alpha_beta, task, parts.counts, len(parts.train))
    loss = LossSpec(gamma=config.gamma, alpha=alpha, label_smoothing=config.label_smoothing)
    served = ServedNet(build_started_net(config, parts), parts.spec)
    served.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ClassifierJob(
        config=config,
        parts=parts,
        folder=(config.out or Path()) / RUN_FOLDER,
        device=device,
        served=served,
        loss=loss,
        criterion=build_criterion(task, loss),
        optimizer=build_optimizer(config, [(served, 1.0)]),
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


def predict_validation(job: ClassifierJob) -> HeldOut:
    """The net's logits for the validation part, in its order.

    Raises:
        Diverged: they are no numbers any more.
    """
    job.served.eval()
    order = np.arange(len(job.parts.val))
    batches = np.split(order, range(_EVALUATED_AT_ONCE, len(order), _EVALUATED_AT_ONCE))
    with torch.inference_mode():
        rows = [
            job.served(torch.from_numpy(pixels).to(job.device)).cpu() for _, pixels in prefetch(job.val_store, batches)
        ]
    logits = torch.cat(rows).double().numpy()
    if not np.isfinite(logits).all():
        raise Diverged("the logits of the validation images are no numbers any more; try a lower --lr")
    return HeldOut(job.parts.data.task, logits, job.val_targets)
