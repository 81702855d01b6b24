"""What the tests of audits of boxes share: pictures with given boxes, as items of /loss."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.serving import Json, b64, encoded, pictures

LABELS = ("tops", "trouser", "dress")
SIZES = ((90, 140), (128, 128), (200, 60), (150, 151))


def picture_of(n: int) -> bytes:
    """A PNG of one of four sizes, blocks of colour, another one for each n."""
    height, width = SIZES[n % len(SIZES)]
    small = pictures(1, 40, n)[0]
    return encoded(np.ascontiguousarray(np.kron(small, np.ones((8, 8, 1), np.uint8))[:height, :width]), "PNG")


def box_items(count: int) -> list[Json]:
    """Pictures, each with none to three boxes within it; every fourth has a crowd among them."""
    rng = np.random.default_rng(count)
    items = []
    for n in range(count):
        height, width = SIZES[n % len(SIZES)]
        boxes: list[Json] = []
        for k in range(n % 4):
            x, y = (rng.uniform(0, 0.5, 2) * (width, height)).round(1).tolist()
            w, h = (rng.uniform(0.2, 0.5, 2) * (width, height)).round(1).tolist()
            boxes.append({"box": [x, y, x + w, y + h], "label": LABELS[(n + k) % 3], "id": f"{n}-{k}"})
        if n % 4 == 3:
            boxes[0]["iscrowd"] = True
        items.append({"id": f"picture {n}", "image": b64(picture_of(n)), "boxes": boxes})
    return items


def decoded(item: Json) -> bytes:
    """The file of an item's picture."""
    return base64.b64decode(item["image"])


def without_rank(boxes: Any) -> list[Json]:
    """Boxes of /loss as an audit tells them."""
    return [{key: value for key, value in box.items() if key != "rank"} for box in boxes]


def close(found: Any, want: Any) -> None:
    """Equal but for the last digits, which depend on the batch that a picture was in."""
    if isinstance(want, dict):
        assert found.keys() == want.keys()
        for key in want:
            close(found[key], want[key])
    elif isinstance(want, list):
        assert len(found) == len(want)
        for one, other in zip(found, want, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(want, rel=1e-4, abs=1e-4) if type(want) is float else want)
