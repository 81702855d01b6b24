"""Given and predicted boxes drawn on their pictures, many in one PNG, for a person to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.boxes import BoxLabels, Floats
from models.errors import InvalidInput
from models.fit import Pixels
from scripts.box_metrics import Detections

_GIVEN, _IGNORED, _FOUND = (60, 190, 60), (150, 150, 150), (255, 150, 30)
_GAP = 4
_TEXT = 11


@dataclass(frozen=True, eq=False)
class Compared:
    """One picture with what it was given and what was found in it.

    Attributes:
        pixels: (H, W, 3) uint8.
        given: boxes, in its pixels.
        found: detections, in its pixels; those to show, so leave out the unsure ones.
        title: written below the picture.
    """

    pixels: Pixels
    given: BoxLabels
    found: Detections
    title: str = ""


def write_grid(
    path: Path, pictures: Sequence[Compared], labels: Sequence[str], columns: int = 4, side: int = 320
) -> None:
    """Writes a PNG of pictures side by side.

    Given boxes are green (ignored ones grey) and thick, with their name at the top; detections are orange and thin,
    with name and score at the bottom, so that colour is not all that tells them apart.

    Args:
        path: of the file.
        pictures: what to show, row by row.
        labels: class names.
        columns: pictures in a row.
        side: longest side of a picture as shown, pixels.

    Raises:
        InvalidInput: no pictures.
    """
    if not pictures:
        raise InvalidInput("there are no pictures to draw")
    cells = [draw_boxes(picture, labels, side) for picture in pictures]
    wide = max(cell.width for cell in cells) + _GAP
    high = max(cell.height for cell in cells) + _GAP
    columns = min(columns, len(cells))
    page = Image.new("RGB", (columns * wide + _GAP, -(-len(cells) // columns) * high + _GAP), "white")
    for k, cell in enumerate(cells):
        page.paste(cell, (_GAP + k % columns * wide, _GAP + k // columns * high))
    page.save(path, format="PNG", compress_level=1)


def draw_boxes(picture: Compared, labels: Sequence[str], side: int) -> Image.Image:
    """One picture with its boxes, its longest side `side` pixels, above a line for its title."""
    height, width = picture.pixels.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    page = Image.new("RGB", (size[0], size[1] + _TEXT + 4), "white")
    page.paste(Image.fromarray(picture.pixels).resize(size, Image.Resampling.BILINEAR))
    draw = ImageDraw.Draw(page)
    given, found = picture.given, picture.found
    for box, label, ignored in zip(given.xyxy, given.labels.tolist(), given.ignored.tolist(), strict=True):
        _draw(draw, box * scale, _IGNORED if ignored else _GIVEN, 2, labels[label], 0)
    for box, label, score in zip(found.xyxy, found.labels.tolist(), found.scores.tolist(), strict=True):
        _draw(draw, box * scale, _FOUND, 1, f"{labels[label]} {score:.2f}", 1)
    _write(draw, (2, size[1] + 1), picture.title, (0, 0, 0))
    return page


def _draw(
    draw: ImageDraw.ImageDraw, box: Floats, colour: tuple[int, int, int], line: int, text: str, below: int
) -> None:  # fmt: skip
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    # Edges are drawn on the pixels inside; a box too small to have any is a dot.
    draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=line)
    _write(draw, (x1 + 2, y2 - _TEXT - 3 if below else y1 + 1), text, colour)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    shadow = (255, 255, 255) if sum(colour) < 60 else (0, 0, 0)
    draw.text(place, text, fill=colour, font=ImageFont.load_default(_TEXT), stroke_width=1, stroke_fill=shadow)
