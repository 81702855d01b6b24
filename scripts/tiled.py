"""A picture larger than a detector's input: overlapping tiles are asked, and what they found is put together."""

from collections.abc import Iterator, Sequence

import numpy as np

from models.boxes import Indices, suppress
from models.fit import Pixels
from models.image import encode_png
from scripts.box_metrics import Detections
from scripts.clients import Model

_AT_ONCE = 16
_MERGED = 0.5
_EDGE = 2.0


def detect_tiled(
    model: Model, pixels: Pixels, labels: Sequence[str], side: int, overlap: int, least: float
) -> Detections:
    """Detections in the whole picture.

    Tiles cover it and overlap by `overlap` or more. A detection that touches an inner edge of its tile is left out
    where its tile is not the only one to show the place: the neighbour sees the object whole. What overlaps a surer
    one of its class by IoU .5 is left out.

    Args:
        model: a detector whose input is `side` pixels high and wide.
        pixels: (H, W, 3) uint8.
        labels: class names.
        side: of the tiles, pixels.
        overlap: of neighbouring tiles, pixels; as large as the objects.
        least: detections above this score, in [0, 1].
    """
    height, width = pixels.shape[:2]
    corners = [(x, y) for y in tile_starts(height, side, overlap) for x in tile_starts(width, side, overlap)]
    boxes, names, scores = [np.zeros((0, 4))], list[int](), list[float]()
    for some in _parts(corners):
        tiles = [(f"{x},{y}", encode_png(pixels[y : y + side, x : x + side])) for x, y in some]
        answers = model.predict(tiles, {"score_threshold": least, "max_detections": 1000})
        for (x, y), answer in zip(some, answers, strict=True):
            found = [one for one in answer["boxes"] if not _is_cut(one["box"], x, y, side, width, height)]
            boxes += [np.asarray(one["box"])[None] + [x, y, x, y] for one in found]
            names += [labels.index(one["label"]) for one in found]
            scores += [one["score"] for one in found]
    return merge(Detections(np.concatenate(boxes), np.array(names, np.int64), np.array(scores, np.float64)))


def merge(found: Detections) -> Detections:
    """Suppression within each class at IoU .5; by falling score."""
    rows = [
        own[suppress(found.xyxy[own], found.scores[own], _MERGED)]
        for own in (np.flatnonzero(found.labels == k) for k in np.unique(found.labels))
    ]
    kept = np.concatenate([np.zeros(0, np.int64), *rows])
    return pick(found, kept[np.argsort(-found.scores[kept], kind="stable")])


def pick(found: Detections, rows: Indices) -> Detections:
    """Some of the detections, by their indices (N,)."""
    return Detections(found.xyxy[rows], found.labels[rows], found.scores[rows])


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: evenly, so that they cover it and overlap by `overlap` or more."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [int(start) for start in np.floor(np.linspace(0, length - side, count))]


def _is_cut(box: Sequence[float], x: int, y: int, side: int, width: int, height: int) -> bool:
    """Whether a box (pixels of the tile) touches an edge of its tile that is none of the picture."""
    x1, y1, x2, y2 = box
    inner = x > 0, y > 0, x + side < width, y + side < height
    touched = x1 < _EDGE, y1 < _EDGE, x2 > side - _EDGE, y2 > side - _EDGE
    return any(one and other for one, other in zip(inner, touched, strict=True))


def _parts(corners: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(corners), _AT_ONCE):
        yield corners[start : start + _AT_ONCE]
