"""What a detector learns from: torch twins of the box losses in numpy, and the loss of a batch.

Whatever the net's precision, boxes are decoded and compared in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.boxes import MOST_GROWTH, UNCOUNTED, BoxLabels, encode_boxes, match_anchors
from models.card import LossSpec
from models.detector_spec import DetectorSpec
from models.nets.losses import sigmoid_focal_loss

BETA = 1.0 / 9.0
_IGNORED = -1


@dataclass(frozen=True)
class Matches:
    """What the anchors of one image learn; anchors that are not named learn background.

    Attributes:
        anchors: (P,) int64, the anchors that learn a box.
        boxes: (P,) int64, which box each of them learns.
        uncounted: (U,) int64, the anchors that learn nothing.
    """

    anchors: NDArray[np.int64]
    boxes: NDArray[np.int64]
    uncounted: NDArray[np.int64]


@dataclass(frozen=True)
class BatchTargets:
    """What a batch of N images learns; P anchors of all of them learn a box.

    Attributes:
        shape: (N, A).
        image: (P,) int64, the image of each learning anchor.
        anchor: (P,) int64, its index.
        label: (P,) int64, the class it learns.
        xyxy: (P, 4) float32, the box it learns, input pixels.
        deltas: (P, 4) float32, the same as deltas of the anchor.
        uncounted: (2, U) int64, image and anchor of those that learn nothing.
    """

    shape: tuple[int, int]
    image: Tensor
    anchor: Tensor
    label: Tensor
    xyxy: Tensor
    deltas: Tensor
    uncounted: Tensor

    def to(self, device: torch.device) -> "BatchTargets":
        """The same on a device."""
        moved = [getattr(self, name).to(device, non_blocking=True) for name in _TENSORS]
        return BatchTargets(self.shape, *moved)


_TENSORS = ("image", "anchor", "label", "xyxy", "deltas", "uncounted")


def find_matches(anchors: NDArray[np.float64], boxes: BoxLabels, spec: DetectorSpec) -> Matches:
    """`models.boxes.match_anchors` of one image in little memory, to be kept.

    Args:
        anchors: (A, 4), input pixels.
        boxes: of the image, input pixels.
        spec: of the detector.
    """
    found = match_anchors(anchors, boxes.xyxy, spec, boxes.ignored)
    learning = np.flatnonzero(found >= 0)
    return Matches(learning, found[learning], np.flatnonzero(found == UNCOUNTED))


def collect_targets(
    anchors: NDArray[np.float64], boxes: Sequence[BoxLabels], matches: Sequence[Matches]
) -> BatchTargets:
    """The targets of a batch.

    Args:
        anchors: (A, 4), input pixels.
        boxes: of each image, input pixels; all of positive area.
        matches: of each image, from `find_matches`.
    """
    rows = np.concatenate([match.anchors for match in matches])
    xyxy = np.concatenate([own.xyxy[match.boxes] for own, match in zip(boxes, matches, strict=True)])
    left_out = [np.stack([np.full_like(match.uncounted, k), match.uncounted]) for k, match in enumerate(matches)]
    return BatchTargets(
        shape=(len(boxes), len(anchors)),
        image=torch.from_numpy(np.repeat(np.arange(len(boxes)), [len(match.anchors) for match in matches])),
        anchor=torch.from_numpy(rows),
        label=torch.from_numpy(
            np.concatenate([own.labels[match.boxes] for own, match in zip(boxes, matches, strict=True)])
        ),
        xyxy=torch.from_numpy(xyxy.astype(np.float32)),
        deltas=torch.from_numpy(encode_boxes(xyxy, anchors[rows]).astype(np.float32)),
        uncounted=torch.from_numpy(np.concatenate(left_out, axis=1)),
    )


def detection_losses(
    cls_logits: Tensor, box_deltas: Tensor, targets: BatchTargets, anchors: Tensor, loss: LossSpec, box_loss: str
) -> tuple[Tensor, Tensor]:
    """The two losses of a batch; each image's sums are divided by its own learning anchors, at least 1.

    So the loss of an image does not depend on the other images of its batch. Both are means over the images.

    Args:
        cls_logits: (N, A, K), any float dtype.
        box_deltas: (N, A, 4), any float dtype.
        targets: of the batch, on the same device.
        anchors: (A, 4) float32, input pixels.
        loss: gamma, alpha and smoothing of the classes' focal loss, summed over all anchors that count.
        box_loss: a name in BOX_LOSSES, summed over the learning anchors.

    Returns:
        Classes and boxes, scalars in nats and in the box loss's own unit.
    """
    share = 1.0 / torch.bincount(targets.image, minlength=targets.shape[0]).clamp(min=1)
    given = torch.zeros(cls_logits.shape, dtype=torch.int8, device=cls_logits.device)
    given[targets.image, targets.anchor, targets.label] = 1
    given[targets.uncounted[0], targets.uncounted[1]] = _IGNORED
    values = sigmoid_focal_loss(
        cls_logits,
        given,
        gamma=loss.gamma,
        alpha=torch.tensor(loss.alpha) if isinstance(loss.alpha, list) else loss.alpha,
        label_smoothing=loss.label_smoothing,
        reduction="none",
        ignore_index=_IGNORED,
    )
    classes = (values.sum(dim=(1, 2)) * share).mean()
    chosen = box_deltas[targets.image, targets.anchor].float()
    boxes = BOX_LOSSES[box_loss](chosen, targets, anchors[targets.anchor])
    return classes, (boxes * share[targets.image]).sum() / targets.shape[0]


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """`models.boxes.decode_boxes` in torch: boxes (..., 4) for deltas (..., 4) of anchors (..., 4)."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + sides / 2 + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(max=MOST_GROWTH).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def smooth_l1(deltas: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 (P,) of deltas (P, 4), summed over the four: d^2 / (2 beta) below beta = 1/9, then |d| - beta / 2."""
    gap = (deltas - targets).abs()
    near = gap.clamp(max=BETA)
    return (near**2 / (2 * BETA) + gap - near).sum(dim=-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalised IoU (P,) of boxes (P, 4), pixels, in [0, 2]; the targets are of positive area."""
    common = _extent(torch.minimum(boxes[:, 2:], targets[:, 2:]) - torch.maximum(boxes[:, :2], targets[:, :2]))
    hull = _extent(torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2]))
    union = _extent(boxes[:, 2:] - boxes[:, :2]) + _extent(targets[:, 2:] - targets[:, :2]) - common
    return 1 - common / union + (hull - union) / hull


def _extent(sides: Tensor) -> Tensor:
    clipped = sides.clamp(min=0)
    return clipped[:, 0] * clipped[:, 1]


BOX_LOSSES: dict[str, Callable[[Tensor, BatchTargets, Tensor], Tensor]] = {
    "smooth_l1": lambda deltas, targets, _anchors: smooth_l1(deltas, targets.deltas),
    "giou": lambda deltas, targets, anchors: giou_loss(decode(deltas, anchors), targets.xyxy),
}
