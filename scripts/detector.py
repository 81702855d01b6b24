"""The recipe of a detector: boxes and their split, anchors, net, loss, validation by AP, export."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.boxes import BoxLabels, make_anchors, to_input
from models.card import ImageInput, LossSpec
from models.detector_spec import AnchorLevel, DetectorSpec
from models.errors import InvalidInput
from models.fit import Pixels, locate
from models.nets.bodies import freeze_stages
from models.nets.box_losses import Matches, collect_targets, detection_losses, find_matches
from models.nets.detector_weights import load_detector_weights
from models.nets.detectors import build_detector, plan_of
from models.nets.export_detector import export_detector
from models.nets.graphs import Export
from models.nets.retinanet import RetinaNet
from models.nets.served import ServedDetector
from scripts.anchor_check import propose_sizes, unreached_share
from scripts.balance import format_counts
from scripts.batches import Indices, Store, open_store, prefetch
from scripts.box_augment import BoxAugmentation, augment_boxes
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_readers import read_boxes
from scripts.box_validation import draw_validation, measure_classes, predict_validation, score_validation
from scripts.config import RUN_FOLDER, TrainConfig
from scripts.evaluate import Score
from scripts.label_checks import fit_label_checks
from scripts.messages import say, say_left_out
from scripts.recipes import build_optimizer
from scripts.splits import split_boxes

_LARGEST_AUTO = 640
_BODY_RATE = 0.3
"""Share of the learning rate at which published weights go on learning."""


@dataclass(frozen=True)
class BoxParts:
    """The data of a training."""

    data: BoxDataSet
    train: tuple[BoxSample, ...]
    val: tuple[BoxSample, ...]
    counts: NDArray[np.int64]
    spec: ImageInput
    detector: DetectorSpec


@dataclass(frozen=True)
class DetectorJob:
    """A detector in training: see `scripts.recipes.Recipe`.

    Attributes:
        train_boxes: of each training image, input pixels.
        val_boxes: of each validation image, input pixels.
        pool: changes the pictures of a batch side by side.
        found: matches of images whose boxes can only be as they are or mirrored, by position and which of the two.
    """

    config: TrainConfig
    parts: BoxParts
    folder: Path
    device: torch.device
    served: ServedDetector
    loss: LossSpec
    optimizer: torch.optim.Optimizer
    train_store: Store
    val_store: Store
    train_boxes: tuple[BoxLabels, ...]
    val_boxes: tuple[BoxLabels, ...]
    anchors: NDArray[np.float64]
    augmentation: BoxAugmentation
    pool: ThreadPoolExecutor
    fingerprint: str
    found: dict[tuple[int, bool], Matches] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.parts.train)

    def load(self, batches: Sequence[Indices]) -> Iterator[tuple[Indices, Pixels]]:
        """Training images by their positions, batch by batch."""
        return prefetch(self.train_store, batches)

    def batch_loss(self, indices: Indices, pixels: Pixels, seed: Sequence[int]) -> Tensor:
        """The classes' loss and the weighted boxes' loss of a batch."""
        seen, boxes, matches = zip(
            *self.pool.map(lambda k, image: self._prepare(k, image, seed), indices.tolist(), pixels), strict=True
        )
        targets = collect_targets(self.anchors, boxes, matches).to(self.device)
        images = torch.from_numpy(np.stack(seen)).to(self.device, non_blocking=True)
        logits, deltas = self.served.net(self.served.normalize(images))
        anchors = cast(Tensor, self.served.anchors)
        classes, places = detection_losses(logits, deltas, targets, anchors, self.loss, self.config.box_loss)
        return classes + self.config.box_weight * places

    def _prepare(self, position: int, image: Pixels, seed: Sequence[int]) -> tuple[Pixels, BoxLabels, Matches]:
        seen, boxes = augment_boxes(image, self.train_boxes[position], self.augmentation, (*seed[:2], position))
        return seen, boxes, self._match(position, boxes)

    def _match(self, position: int, boxes: BoxLabels) -> Matches:
        if self.augmentation.zoom > 0.0 or self.augmentation.turn:
            return find_matches(self.anchors, boxes, self.parts.detector)
        key = (position, np.array_equal(boxes.xyxy, self.train_boxes[position].xyxy))
        if key not in self.found:
            self.found[key] = find_matches(self.anchors, boxes, self.parts.detector)
        return self.found[key]

    def names(self, indices: Indices) -> list[str]:
        """Files of training images."""
        return [self.parts.data.relative(self.parts.train[k]) for k in indices.tolist()]

    def validate(self, epoch: int) -> dict[str, Score]:
        """Average precision on the validation part, in pixels of the input."""
        found = predict_validation(self.served, self.val_store, len(self.val_boxes), self.device)
        return score_validation(found, self.val_boxes, self.parts.data.labels, self.config.max_detections)

    def describe(self, scores: dict[str, Score]) -> str:
        """The scores in a few words."""
        return "validation " + ", ".join(f"{name.upper()} {score.value:.4f}" for name, score in scores.items())

    def export(self, facts: dict[str, Any], epochs: int) -> Export:
        """Measures on the validation part, draws it (`validation.png` in the run's folder), and exports."""
        parts, labels = self.parts, self.parts.data.labels
        found = predict_validation(self.served, self.val_store, len(self.val_boxes), self.device)
        report = measure_classes(found, self.val_boxes, labels, parts.counts, self.config.max_detections)
        say(report.text)
        draw_validation(self.folder / "validation.png", self.val_store, self.val_boxes, found, labels)
        detector = parts.detector.model_copy(update={"score_threshold": report.threshold})
        more = {
            "task": "detection",
            "labels": list(labels),
            "input": parts.spec,
            "detector": fit_label_checks(
                detector, self.served, self.val_store, self.val_boxes, len(labels), self.device
            ),
            "loss": self.loss,
            "classes": report.classes,
            "metrics": report.metrics,
        }
        images = self.val_store.take(np.arange(min(32, len(parts.val))))
        return export_detector(cast(RetinaNet, self.served.net), {**facts, **more}, images)


def read_box_parts(config: TrainConfig) -> BoxParts:
    """Reads and splits the data, says what it holds, and chooses input and anchors."""
    if config.data is None:
        raise InvalidInput("DATA is missing")
    _check_alpha(config)
    data = read_boxes(
        config.data, labels=config.labels or None, images=config.images, on_bad_image=config.on_bad_image,
        on_bad_box=config.on_bad_box,
    )  # fmt: skip
    train, val = split_boxes(data, fraction=config.validation, seed=config.seed)
    if len(train) < 2:
        raise InvalidInput("training needs two images or more")
    counts = count_boxes(train, len(data.labels))
    say(f"detection, {len(train)} training and {len(val)} validation images, {len(data.skipped)} left out")
    regions = f", {data.ignored} ignore regions" if data.ignored else ""
    say(f"{len(data.dropped)} boxes left out, {data.clipped} cut at the edge of their picture{regions}")
    say_left_out(data.left_out)
    say(format_counts(data.labels, counts, count_boxes(val, len(data.labels))))
    if not any(sample.classes for sample in val):
        raise InvalidInput("no validation image has a box that counts, so there is nothing to measure precision with")
    spec = choose_size(config, data.samples)
    return BoxParts(data, train, val, counts, spec, choose_anchors(config, spec, train))


def _check_alpha(config: TrainConfig) -> float | None:
    if isinstance(config.alpha, str) and config.alpha != "none":
        raise InvalidInput("--alpha of a detector is none or a number from 0 to 1")
    return None if config.alpha == "none" else float(config.alpha)


def count_boxes(samples: Sequence[BoxSample], classes: int) -> NDArray[np.int64]:
    """(classes,) how many boxes are of each class."""
    flat = [k for sample in samples for k in sample.classes]
    return np.bincount(np.asarray(flat, np.int64), minlength=classes).astype(np.int64)


def choose_size(config: TrainConfig, samples: Sequence[BoxSample]) -> ImageInput:
    """The graph's input: as asked for; auto: that of all images where they are alike and small, else the net's."""
    sizes = {(sample.height, sample.width) for sample in samples}
    height = width = plan_of(config.net).side
    if config.size is not None:
        height, width = config.size
    elif len(sizes) == 1 and max(next(iter(sizes))) <= _LARGEST_AUTO:
        height, width = sizes.pop()
    return ImageInput(height=height, width=width, resize=config.resize)


def choose_anchors(config: TrainConfig, spec: ImageInput, train: Sequence[BoxSample]) -> DetectorSpec:
    """Levels of the net's plan, with sizes as asked for; else as the training boxes have them, or the plan's own.

    Of these two those that leave fewer boxes without an anchor: where boxes are all of about a size, their quantiles
    put anchors on coarse levels that are too small for the gaps between them.

    Raises:
        InvalidInput: sizes that cannot be dealt out evenly to the levels.
    """
    plan = plan_of(config.net)
    base = plan.spec()
    boxes = [place_boxes(sample, spec) for sample in train]
    count = len(plan.sizes) * plan.levels
    ratios = config.anchor_ratios or base.ratios
    own = [size for level in base.levels for size in level.sizes]
    tried = [_levels(base, sizes, ratios) for sizes in (propose_sizes(boxes, count), own)]
    shares = [unreached_share(boxes, one, spec.height, spec.width) for one in tried]
    chosen, missed = proposed, least = min(zip(tried, shares, strict=True), key=lambda each: each[1])
    if config.anchor_sizes:
        chosen = _levels(base, sorted(config.anchor_sizes), ratios)
        missed = unreached_share(boxes, chosen, spec.height, spec.width)
    detector = chosen.model_copy(update={
        "box_loss": config.box_loss, "box_weight": config.box_weight, "max_detections": config.max_detections,
    })  # fmt: skip
    say(f"anchors of {_sizes(chosen, ', ')} pixels; no anchor reaches IoU 0.5 for {missed:.1%} of "
        "the boxes (they are learnt by their best one)")  # fmt: skip
    if least < missed:
        say(f"  proposed: --anchor-sizes {_sizes(proposed, ',')}, with which that is so for {least:.1%}")
    return detector


def _sizes(spec: DetectorSpec, between: str) -> str:
    return between.join(f"{size:g}" for level in spec.levels for size in level.sizes)


def _levels(base: DetectorSpec, sizes: Sequence[float], ratios: Sequence[float]) -> DetectorSpec:
    """A detector's levels with other sizes, dealt out in order."""
    if len(sizes) % len(base.levels):
        raise InvalidInput(f"--anchor-sizes: {len(sizes)} sizes cannot be dealt out to {len(base.levels)} levels")
    each = len(sizes) // len(base.levels)
    levels = [
        AnchorLevel(stride=level.stride, sizes=list(sizes[k * each : (k + 1) * each]))
        for k, level in enumerate(base.levels)
    ]
    return DetectorSpec(levels=levels, ratios=list(ratios))


def place_boxes(sample: BoxSample, spec: ImageInput) -> BoxLabels:
    """A sample's boxes in pixels of the input."""
    boxes = sample.boxes
    return BoxLabels(to_input(boxes.xyxy, *locate(sample.width, sample.height, spec)), boxes.labels, boxes.ignored,
                     boxes.ids)  # fmt: skip


def build_detection(config: TrainConfig, parts: BoxParts, device: torch.device) -> DetectorJob:
    """Net, loss and optimizer, and the images decoded."""
    torch.manual_seed(config.seed)
    alpha = _check_alpha(config)
    net = build_started_detector(config, parts)
    served = ServedDetector(net, parts.spec, parts.detector)
    served.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    body_rate = 1.0 if config.weights is None else _BODY_RATE
    return DetectorJob(
        config=config,
        parts=parts,
        folder=(config.out or Path()) / RUN_FOLDER,
        device=device,
        served=served,
        loss=LossSpec(gamma=config.gamma, alpha=alpha, label_smoothing=config.label_smoothing),
        optimizer=build_optimizer(config, [(net.body, body_rate), (net.backbone.fpn, 1.0), (net.head, 1.0)]),
        train_store=open_store(parts.train, parts.spec, config.cache_mb),
        val_store=open_store(parts.val, parts.spec, config.cache_mb),
        train_boxes=tuple(place_boxes(sample, parts.spec) for sample in parts.train),
        val_boxes=tuple(place_boxes(sample, parts.spec) for sample in parts.val),
        anchors=make_anchors(parts.detector, parts.spec.height, parts.spec.width),
        augmentation=BoxAugmentation(flip=config.flip, turn=config.turn, zoom=config.multi_scale),
        pool=ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="augment"),
        fingerprint=parts.data.fingerprint(),
    )


def build_started_detector(config: TrainConfig, parts: BoxParts) -> RetinaNet:
    """The net with its first weights, and what is frozen of it."""
    published = config.weights is not None or config.freeze > 0
    norm = config.body_norm if config.body_norm != "auto" else "frozen" if published else "batch"
    net = build_detector(config.net, len(parts.data.labels), parts.detector, norm)
    if config.weights is not None:
        say(load_detector_weights(net, config.weights).describe())
    freeze_stages(net.body, config.freeze)
    return net
