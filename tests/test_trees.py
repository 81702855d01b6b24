"""Photographs cut into tiles with their boxes: the rule on made-up trees, the figures on the real ones."""

import os
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.boxes import BoxLabels, box_iou
from models.errors import InvalidInput
from models.image import decode_image
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_readers import read_boxes
from scripts.trees import HASH, OVERLAP, PACKAGE, TEST, TILE, TRAIN, cut_boxes, write_trees

ROOT = Path(__file__).parent.parent
PHOTOS = Path(os.environ.get("TEST_FIXTURES", ROOT / ".venv" / "fixtures")) / "deepforest" / "data"
INSTALL = "pip install --no-deps --require-hashes --target .venv/fixtures -r tests/fixtures.txt"


def photograph(folder: Path, name: str, width: int, height: int, trees: list[tuple[int, int, int, int]]) -> None:
    """A dark photograph in which every tree is a light rectangle of its own shade."""
    pixels = np.zeros((height, width, 3), np.uint8)
    tree = ElementTree.Element("annotation")
    for number, box in enumerate(trees):
        pixels[box[1] : box[3], box[0] : box[2]] = 100 + number
        found = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(found, "name").text = "Tree"
        corners = ElementTree.SubElement(found, "bndbox")
        for corner, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, corner).text = str(value)
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    ElementTree.ElementTree(tree).write(folder / f"{name}.xml")


def part(data: BoxDataSet, split: str) -> list[BoxSample]:
    return [sample for sample in data.samples if sample.split == split]


def place(sample: BoxSample) -> tuple[int, int]:
    """Left and upper edge of a tile, by its name."""
    _, y, x = sample.path.stem.split("_")
    return int(x), int(y)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    rng = np.random.default_rng(0)
    corners, sides = rng.integers(0, 560, (60, 2)), rng.integers(8, 40, (60, 2))
    trees = [(int(x), int(y), int(x + w), int(y + h)) for (x, y), (w, h) in zip(corners, sides, strict=True)]
    photograph(folder / "photos", TRAIN, 700, 600, trees)
    photograph(folder / "photos", TEST, 300, 200, [(5, 6, 30, 40)])
    (folder / "photos" / "other.xml").write_text("no XML")
    return write_trees(folder / "out", folder / "photos")


def test_tiles_cover_the_photograph_and_parts_share_no_pixel(written: Path) -> None:
    data = read_boxes(written, progress=False)
    seen = np.zeros((600, 700), int)
    for split, columns in (("train", (0, 444)), ("val", (444, 700))):
        covered = np.zeros((600, 700), int)
        for sample in part(data, split):
            x, y = place(sample)
            assert columns[0] <= x and x + sample.width <= columns[1] and (sample.width, sample.height) == (TILE, TILE)
            covered[y : y + TILE, x : x + TILE] += 1
        assert (covered[:, columns[0] : columns[1]] > 0).all()
        seen += covered > 0
    assert (seen == 1).all()
    starts = sorted({place(sample)[1] for sample in part(data, "val")})
    assert all(after - before <= TILE - OVERLAP for before, after in pairwise(starts))
    (test,) = part(data, "test")
    assert (test.width, test.height, test.boxes.xyxy.tolist()) == (300, 200, [[5, 6, 30, 40]])


def test_every_box_of_a_tile_is_where_its_tree_is(written: Path) -> None:
    photo = decode_image((written.parent.parent / "photos" / f"{TRAIN}.png").read_bytes())
    data = read_boxes(written, progress=False)
    for sample in [*part(data, "train"), *part(data, "val")]:
        x, y = place(sample)
        pixels = decode_image(sample.path.read_bytes())
        assert (pixels == photo[y : y + TILE, x : x + TILE]).all()
        for box in sample.boxes.xyxy.astype(int):
            assert (pixels[box[1] : box[3], box[0] : box[2]] > 0).all()
    for split in ("train", "val", "test"):
        alone = read_boxes(written.with_name(f"{split}.json"), progress=False)
        assert [one.path for one in alone.samples] == [one.path for one in part(data, split)]


BOX = st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(2, 40), st.integers(2, 40))


@given(st.lists(BOX, max_size=8), st.integers(0, 60), st.integers(0, 60))
def test_a_tile_has_the_boxes_of_which_half_is_in_it(rows: list[tuple[int, int, int, int]], x: int, y: int) -> None:
    xyxy = np.array([[a, b, a + w, b + h] for a, b, w, h in rows], np.float64).reshape(-1, 4)
    boxes = BoxLabels(xyxy, np.arange(len(rows)), np.zeros(len(rows), bool), tuple(range(len(rows))))
    cut = cut_boxes(boxes, x, y, 50, 50)
    for number, box in enumerate(xyxy):
        wide, high = (min(box[k + 2], start + 50) - max(box[k], start) for k, start in ((0, x), (1, y)))
        share = wide * high / ((box[2] - box[0]) * (box[3] - box[1])) if wide >= 1 and high >= 1 else 0.0
        assert (number in cut.ids) == (share > 0)
        if share > 0:
            at = cut.ids.index(number)
            assert cut.ignored[at] == (share < 0.5) and cut.labels[at] == number
            moved = cut.xyxy[at : at + 1] + np.array([x, y, x, y])
            assert box_iou(moved, box[None])[0, 0] == pytest.approx(share)


def test_what_is_missing_or_in_the_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"no {TRAIN}.png; it is in {PACKAGE}"):
        write_trees(tmp_path / "out", tmp_path)
    with pytest.raises(InvalidInput, match="exists already"):
        write_trees(tmp_path, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_tests_fetch_the_same_file() -> None:
    text = (ROOT / "tests" / "fixtures.txt").read_text()
    assert f"{PACKAGE} \\\n    --hash={HASH}\n" in text


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"needs the photographs of {PACKAGE}: {INSTALL}")
def test_the_real_photographs(tmp_path: Path) -> None:
    data = read_boxes(write_trees(tmp_path / "out", PHOTOS), progress=False)
    assert (data.labels, data.clipped, data.dropped) == (("Tree",), 0, ())
    counts = {split: [len(part(data, split)), sum(len(one.classes) for one in part(data, split))]
              for split in ("train", "val", "test")}  # fmt: skip
    assert counts == {"train": [143, 928], "val": [13, 121], "test": [1, 279]}
