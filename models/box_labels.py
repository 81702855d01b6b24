"""Given boxes as people write them, read strictly.

A list with one object per box, in pixels of the upright original:

    {"box": [x1, y1, x2, y2], "label": "trouser", "iscrowd": false, "id": "7"}

`label` is a name or an index; `iscrowd` and `id` may be left out. As COCO's users are used to, a box may stick out of
the picture and is not clipped (its area counts in every IoU); one that lies outside altogether is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.boxes import BoxLabels
from models.classify import label_index
from models.errors import InvalidLabel

_KEYS = ("box", "label", "iscrowd", "id")
_FURTHEST = 1e6
THINNEST = 1e-3


def read_boxes(label: Any, names: Sequence[str]) -> BoxLabels:
    """Given boxes from their wire form (see above); an empty list is a picture without objects.

    Args:
        label: what a request or a file holds, decoded from JSON.
        names: the model's labels.

    Raises:
        InvalidLabel: not of this form; the message begins with the place, as `boxes.3.box`.
    """
    if not isinstance(label, list):
        raise InvalidLabel('the label of a detector is a list of {"box": [x1, y1, x2, y2], "label": ...}')
    for k, item in enumerate(label):
        _check_keys(item, f"boxes.{k}")
    return BoxLabels(
        np.array([_corners(item["box"], f"boxes.{k}.box") for k, item in enumerate(label)]).reshape(-1, 4),
        np.array([_class(item["label"], names, f"boxes.{k}.label") for k, item in enumerate(label)], np.int64),
        np.array([_flag(item.get("iscrowd", False), f"boxes.{k}.iscrowd") for k, item in enumerate(label)], bool),
        tuple(_name(item.get("id"), f"boxes.{k}.id") for k, item in enumerate(label)),
    )


def refuse_outside(boxes: BoxLabels, width: int, height: int) -> None:
    """Refuses boxes that have no part in the picture.

    Args:
        boxes: as `read_boxes` makes them.
        width: of the upright original, pixels.
        height: of the upright original, pixels.

    Raises:
        InvalidLabel: naming the first such box.
    """
    start, end = boxes.xyxy[:, :2], boxes.xyxy[:, 2:]
    outside = np.flatnonzero((end <= 0.0).any(axis=1) | (start >= [width, height]).any(axis=1))
    if len(outside):
        raise InvalidLabel(f"boxes.{outside[0]}.box: lies outside the picture of {width} x {height} pixels")


def _check_keys(item: Any, place: str) -> None:
    if not isinstance(item, Mapping):
        raise InvalidLabel(f"{place}: a box is an object with box and label")
    unknown = [str(key) for key in item if key not in _KEYS]
    if unknown:
        raise InvalidLabel(f"{place}.{unknown[0][:40]}: no such key; a box has {', '.join(_KEYS)}")
    for key in ("box", "label"):
        if key not in item:
            raise InvalidLabel(f"{place}.{key}: is missing")


def _corners(box: Any, place: str) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not {type(value) for value in box} <= {int, float}:
        raise InvalidLabel(f"{place}: a box is four numbers, x1, y1, x2, y2")
    if not all(abs(value) <= _FURTHEST for value in box):  # nor NaN
        raise InvalidLabel(f"{place}: coordinates are pixels, finite and at most {_FURTHEST:,.0f}")
    x1, y1, x2, y2 = (float(value) for value in box)
    if x2 < x1 or y2 < y1:
        raise InvalidLabel(
            f"{place}: the corners are swapped: x1, y1 is the left upper one, x2, y2 the right lower one"
        )
    if min(x2 - x1, y2 - y1) < THINNEST:
        raise InvalidLabel(f"{place}: the box has no area")
    return [x1, y1, x2, y2]


def _class(label: Any, names: Sequence[str], place: str) -> int:
    if type(label) not in (int, str):
        raise InvalidLabel(f"{place}: a box's label is a name or an index")
    try:
        return label_index(label, names)
    except InvalidLabel as error:
        raise InvalidLabel(f"{place}: {error}") from None


def _flag(value: Any, place: str) -> bool:
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):  # COCO writes 0 and 1
        return bool(value)
    raise InvalidLabel(f"{place}: is true or false, 1 or 0")


def _name(value: Any, place: str) -> int | str | None:
    if value is None or type(value) is int or (isinstance(value, str) and _is_unicode(value)):
        return value
    raise InvalidLabel(f"{place}: an id is text or a whole number")


def _is_unicode(text: str) -> bool:
    """Whether an answer can repeat it: JSON's escapes can make half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
