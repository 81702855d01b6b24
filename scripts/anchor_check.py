"""Do the anchors suit the boxes? Sizes proposed from a data set, and how many boxes no anchor reaches."""

from collections.abc import Sequence

import numpy as np

from models.boxes import TIE, BoxLabels, Floats, box_iou, make_anchors
from models.detector_spec import DetectorSpec

_MOST = 20_000
_BOXES_AT_ONCE = 64


def unreached_share(boxes: Sequence[BoxLabels], spec: DetectorSpec, height: int, width: int) -> float:
    """Share of boxes whose best anchor is below `spec.positive_iou`: they are learnt by that single anchor.

    Args:
        boxes: of each image, input pixels; ignored ones do not count. At most 20,000 are looked at, evenly spread.
        spec: of the detector.
        height: rows of the input.
        width: columns of the input.

    Returns:
        0 to 1; 0 where there are no boxes.
    """
    given = _counted(boxes)
    given = given[np.unique(np.linspace(0, len(given) - 1, min(len(given), _MOST)).astype(np.int64))]
    anchors = make_anchors(spec, height, width)
    best = [
        box_iou(given[at : at + _BOXES_AT_ONCE], anchors).max(axis=1) for at in range(0, len(given), _BOXES_AT_ONCE)
    ]
    return float((np.concatenate(best) < spec.positive_iou - TIE).mean()) if best else 0.0


def propose_sizes(boxes: Sequence[BoxLabels], count: int) -> list[float]:
    """Anchor sizes that cut the boxes' own sizes into equally many: the middles of `count` quantile ranges.

    Args:
        boxes: of each image, input pixels, not all of them empty.
        count: of sizes.

    Returns:
        Ascending square roots of areas, whole pixels, each at least one more than the one before.
    """
    sides = np.diff(_counted(boxes).reshape(-1, 2, 2), axis=1)[:, 0]
    middles = np.quantile(np.log(sides).mean(axis=1), (np.arange(count) + 0.5) / count)
    found = np.maximum(np.rint(np.exp(middles)), 1.0)
    for k in range(1, count):
        found[k] = max(found[k], found[k - 1] + 1.0)
    return [float(size) for size in found]


def _counted(boxes: Sequence[BoxLabels]) -> Floats:
    """(M, 4) the boxes that count, of all images."""
    return np.concatenate([np.zeros((0, 4)), *(own.xyxy[~own.ignored] for own in boxes)])
