"""Training pictures changed at random together with their boxes: mirrored, turned, scaled, cut, lit otherwise.

What happens to a picture is a function of (seed, epoch, index), not of a generator's state, so that a run that stopped
anywhere goes on with exactly the pictures it would have had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.boxes import BoxLabels, Floats
from models.fit import Pixels

_PAD_GREY = 114  # as models.image pads


@dataclass(frozen=True)
class BoxAugmentation:
    """What may happen to a picture.

    Attributes:
        flip: half of the pictures are mirrored left to right.
        turn: pictures are mirrored top to bottom and turned by quarters at random, as seen from above; where the
            picture is not square, by halves.
        zoom: the picture is scaled by a factor between 1 / (1 + zoom) and 1 + zoom; what does not fit is cut off,
            what is missing is grey. 0: never.
        light: brightness and contrast change by a share of up to this, each colour's brightness by up to half of it
            beside: another camera, another hour. 0: never.
    """

    flip: bool = True
    turn: bool = False
    zoom: float = 0.25
    light: float = 0.2


def augment_boxes(
    pixels: Pixels, boxes: BoxLabels, settings: BoxAugmentation, seed: Sequence[int]
) -> tuple[Pixels, BoxLabels]:
    """Changes one picture with its boxes.

    A box stays if its centre stays in the picture, and is cut at the edge; an ignored region stays as far as any of it
    does. Boxes that stay have an area.

    Args:
        pixels: (H, W, 3) uint8, of the input's size; not changed.
        boxes: of the picture, in pixels of the input.
        settings: what may happen.
        seed: whole numbers that decide it all: seed, epoch, index of the picture.

    Returns:
        (H, W, 3) uint8, and the boxes in it.
    """
    rng = np.random.default_rng(list(seed))
    xyxy = np.array(boxes.xyxy, np.float64).reshape(-1, 4)
    if settings.flip and rng.random() < 0.5:
        pixels, xyxy = _mirror(pixels, xyxy)
    if settings.turn:
        if rng.random() < 0.5:
            pixels, xyxy = _turn(*_mirror(pixels, xyxy), 2)  # top to bottom
        quarters = int(rng.integers(4))
        pixels, xyxy = _turn(pixels, xyxy, quarters if pixels.shape[0] == pixels.shape[1] else quarters // 2 * 2)
    kept = np.arange(len(xyxy))
    if settings.zoom > 0.0:
        pixels, xyxy = _zoom(pixels, xyxy, settings.zoom, rng)
        xyxy, kept = _clip(xyxy, boxes.ignored, pixels.shape[0], pixels.shape[1])
    if settings.light > 0.0:
        pixels = _relight(pixels, settings.light, rng)
    held = BoxLabels(xyxy, boxes.labels[kept], boxes.ignored[kept], tuple(boxes.ids[k] for k in kept))
    return np.ascontiguousarray(pixels), held


def _mirror(pixels: Pixels, xyxy: Floats) -> tuple[Pixels, Floats]:
    width = pixels.shape[1]
    return pixels[:, ::-1], np.stack([width - xyxy[:, 2], xyxy[:, 1], width - xyxy[:, 0], xyxy[:, 3]], axis=1)


def _turn(pixels: Pixels, xyxy: Floats, quarters: int) -> tuple[Pixels, Floats]:
    """Turned to the left by quarters."""
    for _ in range(quarters):
        width = pixels.shape[1]
        pixels = np.rot90(pixels)
        xyxy = np.stack([xyxy[:, 1], width - xyxy[:, 2], xyxy[:, 3], width - xyxy[:, 0]], axis=1)
    return pixels, xyxy


def _zoom(pixels: Pixels, xyxy: Floats, most: float, rng: np.random.Generator) -> tuple[Pixels, Floats]:
    """Scaled, and placed at random: a part of the picture made larger, or the picture made smaller on grey."""
    height, width = pixels.shape[:2]
    factor = float(np.exp(rng.uniform(-1.0, 1.0) * np.log1p(most)))
    x, y = rng.random(2)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if factor >= 1.0:
        left, top = x * (width - width / factor), y * (height - height / factor)
        box = (left, top, min(left + width / factor, width), min(top + height / factor, height))
        cut = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(cut), (xyxy - np.tile([left, top], 2)) * factor
    small = max(1, round(width * factor)), max(1, round(height * factor))
    left, top = int(x * (width - small[0] + 1)), int(y * (height - small[1] + 1))
    page = np.full_like(pixels, _PAD_GREY)
    page[top : top + small[1], left : left + small[0]] = np.asarray(picture.resize(small, Image.Resampling.BILINEAR))
    scale = np.tile([small[0] / width, small[1] / height], 2)
    return page, xyxy * scale + np.tile([left, top], 2)


def _clip(
    xyxy: Floats, ignored: NDArray[np.bool_], height: int, width: int
) -> tuple[Floats, NDArray[np.intp]]:  # fmt: skip
    """The boxes that stay, cut at the edge, and which they are."""
    edge = np.array([width, height], np.float64)
    centres = (xyxy[:, :2] + xyxy[:, 2:]) / 2.0
    cut = np.clip(xyxy, 0.0, np.tile(edge, 2))
    inside = ((centres >= 0.0) & (centres < edge)).all(axis=1) | ignored
    kept = np.flatnonzero(inside & (cut[:, 2:] > cut[:, :2]).all(axis=1))
    return cut[kept], kept


def _relight(pixels: Pixels, most: float, rng: np.random.Generator) -> Pixels:
    """Another brightness, another contrast about the picture's mean, a cast of colour; a table of 3 x 256 does it."""
    brightness, contrast = rng.uniform(1.0 - most, 1.0 + most, 2)
    cast = rng.uniform(1.0 - most / 2.0, 1.0 + most / 2.0, (3, 1))
    mean = float(pixels.mean())
    levels = ((np.arange(256.0) - mean) * contrast + mean) * brightness * cast
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).point(table.ravel().tolist()))
