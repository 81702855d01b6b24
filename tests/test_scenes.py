"""Composed scenes: what a box says is there is there, and what is written is read back."""

from pathlib import Path

import numpy as np
import pytest

from models.boxes import box_areas, box_iou, intersections
from models.errors import InvalidInput
from scripts.box_readers import read_boxes
from scripts.items import DEBIAN, FIVE, Items, debian_items, embedded_items, merge_items
from scripts.scenes import Scenes, SceneSpec, compose_scenes, main, write_scenes


@pytest.fixture(scope="module")
def items() -> Items:
    return merge_items(embedded_items("train"))


@pytest.fixture(scope="module")
def scenes(items: Items) -> Scenes:
    return compose_scenes(items, 300, 0)


def test_embedded_items_have_their_true_classes_and_parts_share_none() -> None:
    train, test = embedded_items("train"), embedded_items("test")
    assert sorted(np.bincount(train.classes).tolist()) == [20, 34, 56, 94, 156, 260, 434, 724, 1208, 2015]
    assert np.bincount(test.classes).tolist() == [100] * 10
    assert {one.tobytes() for one in train.images}.isdisjoint(one.tobytes() for one in test.images)
    five = merge_items(test)
    assert (five.labels, np.bincount(five.classes).tolist()) == (FIVE, [400, 100, 100, 300, 100])


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs the Debian package dataset-fashion-mnist")
def test_debian_items_are_all_of_fashion_mnist() -> None:
    test = debian_items("test")
    assert test.images.shape == (10_000, 28, 28) and np.bincount(test.classes).tolist() == [1000] * 10
    known = {one.tobytes(): int(k) for one, k in zip(test.images, test.classes, strict=True)}
    embedded = embedded_items("test")
    assert all(test.labels[known[one.tobytes()]] == embedded.labels[k]
               for one, k in zip(embedded.images, embedded.classes, strict=True))  # fmt: skip


def test_debian_items_that_are_not_there_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="apt-get install dataset-fashion-mnist"):
        debian_items("train", tmp_path)


def test_scenes_are_what_the_rules_say(scenes: Scenes) -> None:
    assert scenes.pixels.shape == (300, 128, 128, 3) and scenes.pixels.dtype == np.uint8
    assert (scenes.pixels[..., 0] == scenes.pixels[..., 2]).all()
    counts = [len(boxes) for boxes in scenes.boxes]
    assert 15 <= counts.count(0) <= 45 and max(counts) <= 8 and np.mean(counts) > 3
    for boxes in scenes.boxes:
        sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
        assert (boxes.xyxy >= 0).all() and (boxes.xyxy <= 128).all() and (sides >= 4).all()
        assert ((sides.max(axis=1) >= 20) & (sides.max(axis=1) <= 56)).all()
        others = ~np.eye(len(boxes), dtype=bool)
        areas = box_areas(boxes.xyxy)
        common = intersections(boxes.xyxy, boxes.xyxy)
        assert (box_iou(boxes.xyxy, boxes.xyxy)[others] < 0.2).all()
        assert ((common / np.minimum(areas[:, None], areas[None]))[others] < 0.5).all()
    classes = np.bincount(np.concatenate([boxes.labels for boxes in scenes.boxes]), minlength=5)
    assert classes.min() > 0.7 * classes.mean() and classes.max() < 1.3 * classes.mean()


def test_an_item_reaches_every_side_of_its_box_and_not_beyond(items: Items) -> None:
    # White items and no clutter but the noise: the light part of a scene is the item.
    white = Items(np.where(items.images >= 24, 255, 0).astype(np.uint8), items.classes, items.labels)
    scenes = compose_scenes(white, 150, 3, SceneSpec(most=1, empty=0.0))
    bare = compose_scenes(white, 150, 3, SceneSpec(most=1, empty=1.0))
    for with_item, without, boxes in zip(scenes.pixels[..., 0], bare.pixels[..., 0], scenes.boxes, strict=True):
        changed = np.abs(with_item.astype(int) - without) > 30
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        seen = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]])
        assert np.abs(seen - boxes.xyxy).max() <= 2
        assert not changed[: int(boxes.xyxy[0, 1])].any() and not changed[:, : int(boxes.xyxy[0, 0])].any()


def test_a_scene_depends_on_seed_and_position_only(items: Items, scenes: Scenes) -> None:
    few, other = compose_scenes(items, 5, 0), compose_scenes(items, 5, 1)
    assert (few.pixels == scenes.pixels[:5]).all()
    assert all((a.xyxy == b.xyxy).all() for a, b in zip(few.boxes, scenes.boxes, strict=False))
    assert all((a != b).any() for a, b in zip(few.pixels, other.pixels, strict=True))


def test_what_cannot_be_composed_is_refused(items: Items) -> None:
    with pytest.raises(InvalidInput, match="a class without items"):
        compose_scenes(items.take(np.flatnonzero(items.classes != 2)), 1, 0)
    with pytest.raises(InvalidInput, match="do not fit a scene of 48"):
        compose_scenes(items, 1, 0, SceneSpec(side=48))


def test_written_scenes_are_read_back(tmp_path: Path, items: Items) -> None:
    parts = {"train": compose_scenes(items, 12, 0), "val": compose_scenes(items, 4, 1)}
    whole = read_boxes(write_scenes(tmp_path / "out", parts), progress=False)
    assert whole.labels == FIVE
    assert [sample.split for sample in whole.samples] == ["train"] * 12 + ["val"] * 4
    for sample, boxes in zip(whole.samples, [*parts["train"].boxes, *parts["val"].boxes], strict=True):
        assert (sample.boxes.xyxy == boxes.xyxy).all() and (sample.boxes.labels == boxes.labels).all()
    val = read_boxes(tmp_path / "out" / "val.json", progress=False)
    assert [sample.path.name for sample in val.samples] == [f"val_{k:05d}.png" for k in range(4)]
    with pytest.raises(InvalidInput, match="exists already"):
        write_scenes(tmp_path / "out", parts)


def test_the_command_writes_parts_of_different_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "s"), "--train", "6", "--val", "3", "--classes", "10"]) == 0
    data = read_boxes(Path(capsys.readouterr().out.strip()), progress=False)
    assert len(data.samples) == 9 and len(data.labels) == 10
