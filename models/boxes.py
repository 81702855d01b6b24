"""Boxes: IoU, anchors, matching, coding. The one place for training, serving and scoring; numpy only.

A box is (x1, y1, x2, y2) in pixels, x to the right and y down, the corners at x1, y1 and x2, y2 (a box of one pixel is
1 wide): COCO's x, y, width, height is x1, y1, x2 - x1, y2 - y1. Anchors and coding are torchvision's, so that its
RetinaNet's weights mean the same here.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.detector_spec import DetectorSpec
from models.errors import InvalidInput

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

BACKGROUND, UNCOUNTED = -1, -2
TIE = 1e-5
"""IoUs this near to each other are equal: float32 pixels must not decide which anchor learns a box."""
MOST_GROWTH = math.log(1000.0 / 16.0)
"""Largest log-ratio of a box's side to its anchor's that is decoded (torchvision)."""
_CELLS_AT_ONCE = 400_000


@dataclass(frozen=True)
class BoxLabels:
    """The given boxes of one image: what a data set holds, what training learns, what /loss scores.

    Attributes:
        xyxy: (M, 4) float64, pixels of the upright original.
        labels: (M,) int64, indices into the model's labels.
        ignored: (M,) bool: a crowd or ignore region, which nobody learns and nobody scores.
        ids: (M,) the boxes' own names in their data set; None where they have none.
    """

    xyxy: Floats
    labels: Indices
    ignored: NDArray[np.bool_]
    ids: tuple[int | str | None, ...]

    def __len__(self) -> int:
        """M, the number of boxes."""
        return len(self.xyxy)


def box_areas(boxes: NDArray[np.floating]) -> Floats:
    """Areas (N,) of boxes (N, 4), square pixels; 0 where a corner is swapped."""
    sides = np.clip(np.asarray(boxes[:, 2:], np.float64) - boxes[:, :2], 0.0, None)
    return np.asarray(sides[:, 0] * sides[:, 1])


def intersections(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """Areas of overlap (N, M) between boxes (N, 4) and (M, 4), square pixels."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    wide = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    high = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    return np.asarray(np.clip(wide, 0.0, None) * np.clip(high, 0.0, None))


def touches_any(box: Floats, others: Floats) -> bool:
    """Whether a box (4,) shares any area with one of some boxes (M, 4)."""
    return bool(((others[:, :2] < box[2:]) & (others[:, 2:] > box[:2])).all(axis=1).any())


def box_iou(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """Intersection over union (N, M), in [0, 1], of boxes (N, 4) and (M, 4); 0 where both are empty."""
    return _over_union(intersections(first, second), box_areas(first)[:, None] + box_areas(second)[None, :])


@dataclass(frozen=True)
class Pairs:
    """Pairs of boxes of two sets that overlap; all others have an IoU of 0.

    Attributes:
        first: (P,) int64 index into the first set, ascending.
        second: (P,) int64 index into the second set, ascending for each of the first.
        iou: (P,) float64, above 0 but for what underflows.
    """

    first: Indices
    second: Indices
    iou: Floats


def overlapping_pairs(first: NDArray[np.floating], second: NDArray[np.floating]) -> Pairs:
    """The pairs of boxes (N, 4) and (M, 4) that overlap: what `box_iou` says, where most of it would be 0.

    There may be N * M of them: see `parts_of`.
    """
    a, b = np.asarray(first, np.float64), np.ascontiguousarray(np.asarray(second, np.float64).T)
    x1, y1, x2, y2 = a.T[:, :, None]
    rows, columns = np.nonzero((b[0] < x2) & (b[2] > x1) & (b[1] < y2) & (b[3] > y1))
    common = np.ones(len(rows))
    for low, high, other_low, other_high in ((*a.T[::2], *b[::2]), (*a.T[1::2], *b[1::2])):
        side = np.minimum(high[rows], other_high[columns]) - np.maximum(low[rows], other_low[columns])
        common *= np.maximum(side, 0.0)
    return Pairs(rows, columns, _over_union(common, box_areas(a)[rows] + box_areas(b.T)[columns]))


def parts_of(count: int, width: int) -> list[tuple[int, int]]:
    """First and last + 1 of the rows to work on at once, so that (rows, width) stays small; one part at least."""
    step = max(1, _CELLS_AT_ONCE // max(1, width))
    return list(pairwise([*range(0, count, step), count])) or [(0, 0)]


def paired_iou(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """Intersection over union (N,), in [0, 1], of boxes (N, 4) and (N, 4), row by row; 0 where both are empty."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0.0, None)
    return _over_union(sides[:, 0] * sides[:, 1], box_areas(a) + box_areas(b))


def _over_union(common: Floats, areas: Floats) -> Floats:
    union = areas - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0.0))


def make_anchors(spec: DetectorSpec, height: int, width: int) -> Floats:
    """Anchors (A, 4) of an input, input pixels, in the order of the graph's outputs.

    Level by level, row by row, column by column, then ratio by ratio, then size by size; the centre of cell (row,
    column) is (column * stride, row * stride), a level has ceil(side / stride) cells a side, and the anchors' corners
    are rounded relative to their centre: torchvision's AnchorGenerator.

    Args:
        spec: of the detector.
        height: rows of the input.
        width: columns of the input.
    """
    found = []
    for level in spec.levels:
        root = np.sqrt(np.asarray(spec.ratios, np.float64))[:, None]
        sizes = np.asarray(level.sizes, np.float64)[None, :]
        wide, high = (sizes / root).ravel(), (sizes * root).ravel()
        base = np.round(np.stack([-wide, -high, wide, high], axis=1) / 2.0)
        columns = np.arange(-(-width // level.stride), dtype=np.float64) * level.stride
        rows = np.arange(-(-height // level.stride), dtype=np.float64) * level.stride
        y, x = np.meshgrid(rows, columns, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        found.append((centres + base[None]).reshape(-1, 4))
    return np.concatenate(found)


def match_anchors(
    anchors: NDArray[np.floating],
    boxes: NDArray[np.floating],
    spec: DetectorSpec,
    ignored: NDArray[np.bool_] | None = None,
) -> Indices:
    """Which box each anchor learns.

    An anchor learns the box it overlaps most if their IoU is at least `spec.positive_iou`. A box's best anchor (and
    those that tie with it) learns the box even below that, unless the anchor has a box of its own. IoUs within 1e-5
    are equal. Anchors that lie by half or more in an ignored region, and have no box, learn nothing.

    Args:
        anchors: (A, 4), pixels.
        boxes: (M, 4), pixels, the same frame.
        spec: the thresholds.
        ignored: (M,) bool: crowds and ignore regions; they are never learnt.

    Returns:
        (A,) int64: index of a box, BACKGROUND (-1), or UNCOUNTED (-2).
    """
    ignored = np.zeros(len(boxes), bool) if ignored is None else np.asarray(ignored, bool)
    real = np.flatnonzero(~ignored)
    found = np.full(len(anchors), BACKGROUND, np.int64)
    if len(real):
        given = np.asarray(boxes, np.float64)[real]
        best, pairs = _contenders(anchors, given, spec.positive_iou)
        found[best >= spec.negative_iou - TIE] = UNCOUNTED
        positive = (best >= spec.positive_iou - TIE) & (best > 0.0)
        box, anchor = pairs.first, pairs.second
        # Among boxes that tie for an anchor the first one, which is written last: rounding must not decide.
        own = np.flatnonzero(positive[anchor] & (pairs.iou >= best[anchor] - TIE))[::-1]
        found[anchor[own]] = real[box[own]]
        top = np.zeros(len(given))
        np.maximum.at(top, box, pairs.iou)
        lonely = np.flatnonzero(~positive[anchor] & (pairs.iou >= top[box] - TIE))
        lonely = lonely[np.lexsort((-box[lonely], pairs.iou[lonely]))]
        found[anchor[lonely]] = real[box[lonely]]
    if ignored.any():
        own = np.maximum(box_areas(anchors), 1e-9)
        inside = intersections(anchors, np.asarray(boxes, np.float64)[ignored]).max(axis=1) / own
        found[(inside >= 0.5 - TIE) & (found == BACKGROUND)] = UNCOUNTED
    return found


def _contenders(anchors: NDArray[np.floating], boxes: Floats, positive_iou: float) -> tuple[Floats, Pairs]:
    """Each anchor's largest IoU (A,), and the pairs of a box and an anchor that may come to learn it."""
    best, kept = np.zeros(len(anchors)), list[Pairs]()
    for first, last in parts_of(len(boxes), len(anchors)):
        pairs = overlapping_pairs(boxes[first:last], anchors)
        np.maximum.at(best, pairs.second, pairs.iou)
        top = np.zeros(last - first)
        np.maximum.at(top, pairs.first, pairs.iou)
        near = (pairs.iou >= np.minimum(positive_iou - TIE, top[pairs.first]) - TIE) & (pairs.iou > 0.0)
        kept.append(Pairs(pairs.first[near] + first, pairs.second[near], pairs.iou[near]))
    return best, Pairs(*(np.concatenate([getattr(part, name) for part in kept]) for name in ("first", "second", "iou")))


def encode_boxes(boxes: NDArray[np.floating], anchors: NDArray[np.floating]) -> Floats:
    """Deltas (N, 4) that take anchors (N, 4) to boxes (N, 4): dx, dy in sides of the anchor, log-ratios of the sides.

    Raises:
        InvalidInput: a box without width or height.
    """
    given, base = np.asarray(boxes, np.float64), np.asarray(anchors, np.float64)
    sides, own = given[:, 2:] - given[:, :2], base[:, 2:] - base[:, :2]
    if not (sides > 0.0).all():
        raise InvalidInput("a box without width or height cannot be learnt")
    shift = (given[:, :2] + sides / 2.0 - base[:, :2] - own / 2.0) / own
    return np.concatenate([shift, np.log(sides / own)], axis=1)


def decode_boxes(deltas: NDArray[np.floating], anchors: NDArray[np.floating]) -> Floats:
    """Boxes (..., 4) for deltas (..., 4) of anchors (..., 4): the inverse of `encode_boxes`, growth limited."""
    given, base = np.asarray(deltas, np.float64), np.asarray(anchors, np.float64)
    own = base[..., 2:] - base[..., :2]
    centre = base[..., :2] + own / 2.0 + given[..., :2] * own
    half = own * np.exp(np.minimum(given[..., 2:], MOST_GROWTH)) / 2.0
    return np.concatenate([centre - half, centre + half], axis=-1)


def suppress(boxes: NDArray[np.floating], scores: NDArray[np.floating], iou: float) -> Indices:
    """Greedy non-maximum suppression: indices that stay, by falling score; ties keep their order.

    Args:
        boxes: (N, 4), pixels.
        scores: (N,).
        iou: a box that overlaps a better one by more than this is dropped.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    given, kept = np.asarray(boxes, np.float64)[order], list[Indices]()
    left = np.arange(len(order))
    while len(left):
        step = parts_of(len(left), len(left))[0][1]
        pairs = overlapping_pairs(given[left[:step]], given[left])
        rival = (pairs.iou > iou) & (pairs.second > pairs.first)
        first, second = pairs.first[rival], pairs.second[rival]
        starts, stays = np.searchsorted(first, np.arange(step + 1)), np.ones(len(left), bool)
        for k in np.flatnonzero(np.diff(starts)):
            if stays[k]:
                stays[second[starts[k] : starts[k + 1]]] = False
        kept.append(left[:step][stays[:step]])
        left = left[step:][stays[step:]]
    return np.asarray(order[np.concatenate([*kept, left])], np.int64)


def to_input(boxes: NDArray[np.floating], scale: tuple[float, float], offset: tuple[float, float]) -> Floats:
    """Boxes (N, 4) from pixels of the original to pixels of the input, by `models.image.Fitted`'s geometry."""
    return np.asarray(np.asarray(boxes, np.float64) * np.tile(scale, 2) + np.tile(offset, 2))


def to_original(boxes: NDArray[np.floating], scale: tuple[float, float], offset: tuple[float, float]) -> Floats:
    """The inverse of `to_input`; not clipped to the picture."""
    return np.asarray((np.asarray(boxes, np.float64) - np.tile(offset, 2)) / np.tile(scale, 2))
