"""Boxes are drawn where they are, in their colours, whatever the classes are called."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.boxes import BoxLabels
from models.errors import InvalidInput
from scripts.box_metrics import Detections
from scripts.box_pictures import Compared, draw_boxes, write_grid

GREEN, ORANGE, GREY = (60, 190, 60), (255, 150, 30), (150, 150, 150)


def compared(height: int = 100, width: int = 200, title: str = "") -> Compared:
    given = BoxLabels(
        np.array([[20.0, 30, 80, 90], [150, 10, 190, 50]]), np.array([0, 1]), np.array([False, True]), (1, 2)
    )
    found = Detections(np.array([[100.0, 40, 140, 95]]), np.array([1]), np.array([0.5]))
    return Compared(np.zeros((height, width, 3), np.uint8), given, found, title)


def corners(image: Image.Image, colour: tuple[int, int, int]) -> list[int]:
    at = (np.asarray(image) == colour).all(axis=-1)
    rows, columns = np.flatnonzero(at.any(axis=1)), np.flatnonzero(at.any(axis=0))
    return [int(value) for value in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_are_where_they_are(scale: int) -> None:
    image = draw_boxes(compared(), ["a", "b"], 200 * scale)
    assert corners(image, GREEN) == [scale * value for value in (20, 30, 80, 90)]
    assert corners(image, ORANGE) == [scale * value for value in (100, 40, 140, 95)]
    assert corners(image, GREY) == [scale * value for value in (150, 10, 190, 50)]


def test_names_scores_and_titles_are_written() -> None:
    plain = np.asarray(draw_boxes(compared(), ["", ""], 400))
    named = np.asarray(draw_boxes(compared(), ["tops", ""], 400))
    titled = np.asarray(draw_boxes(compared(title="x.png"), ["", ""], 400))
    assert np.argwhere((plain != named).any(axis=-1)).min(axis=0).tolist() >= [60, 40]
    assert (plain[200:] == 255).all() and (titled[200:] != 255).any() and (titled[:200] == plain[:200]).all()
    assert (plain[60:190, 200:280] != 0).any()  # the score stands there without a name


def test_a_grid_has_every_picture_and_any_names(tmp_path: Path) -> None:
    pictures = [compared(), compared(300, 200), compared(), compared(), compared(1, 1, "größe 猫\n<b>")]
    write_grid(tmp_path / "grid.png", pictures, ["größe 猫", "\U0001f600\x00"], columns=3, side=120)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.format == "PNG" and grid.width == 3 * 124 + 4 and grid.height == 2 * (120 + 15 + 4) + 4
        pixels = np.asarray(grid)
    for row, column in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        cell = pixels[4 + row * 139 :, 4 + column * 124 :][:120, :120]
        assert (cell == GREEN).all(axis=-1).sum() > 50


def test_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no pictures"):
        write_grid(tmp_path / "grid.png", [], [])
