from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.boxes import BoxLabels
from models.errors import InvalidInput
from scripts.box_data import BoxDataSet, BoxSample
from scripts.splits import split_boxes


def dataset(pages: list[list[int]], groups: list[str] | None = None, splits: list[str] | None = None) -> BoxDataSet:
    """Pictures by the classes of their boxes."""
    samples = tuple(
        BoxSample(
            Path(f"/data/{number:04d}.png"),
            BoxLabels(
                np.tile([1.0, 2, 3, 4], (len(page), 1)),
                np.array(page, np.int64),
                np.zeros(len(page), bool),
                (None,) * len(page),
            ),
            str(number),
            9,
            9,
            splits[number] if splits else None,
            groups[number] if groups else None,
        )
        for number, page in enumerate(pages)
    )
    classes = max((k for page in pages for k in page), default=0) + 1
    return BoxDataSet(Path("/data"), tuple(f"c{k}" for k in range(classes)), samples)


def boxes_of(samples: tuple[BoxSample, ...]) -> Counter[int]:
    return Counter(k for sample in samples for k in sample.classes)


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=20, max_size=60), st.integers(0, 99))
def test_every_picture_is_on_one_side_and_no_class_leaves_training(pages: list[list[int]], seed: int) -> None:
    data = dataset([*pages, *[[k] for k in range(4) for _ in range(3)]])
    train, val = split_boxes(data, fraction=0.25, seed=seed)
    assert sorted(sample.origin for sample in (*train, *val)) == sorted(sample.origin for sample in data.samples)
    assert set(boxes_of(train)) == set(boxes_of(val)) == {0, 1, 2, 3}
    again, _ = split_boxes(replace(data, samples=data.samples[::-1]), fraction=0.25, seed=seed)
    assert again == train


def test_classes_and_empty_pictures_keep_their_share() -> None:
    rng = np.random.default_rng(0)
    pages = [rng.choice(4, rng.integers(1, 8), p=[0.6, 0.25, 0.1, 0.05]).tolist() for _ in range(900)] + [[]] * 100
    data = dataset(pages)
    _, val = split_boxes(data, fraction=0.2, seed=1)
    shares = [boxes_of(val)[k] / count for k, count in enumerate(data.counts.tolist())]
    assert all(0.17 < share < 0.23 for share in shares)
    assert 15 <= sum(not sample.classes for sample in val) <= 25


def test_groups_stay_whole_and_given_splits_are_kept() -> None:
    pages = [[number % 2] for number in range(60)]
    train, val = split_boxes(dataset(pages, [f"g{number // 4}" for number in range(60)]), fraction=0.2)
    assert {sample.group for sample in train}.isdisjoint(sample.group for sample in val) and val
    train, val = split_boxes(dataset(pages, splits=["train", "val", "test"] * 20))
    assert (len(train), len(val)) == (20, 20) and {sample.split for sample in val} == {"val"}


def test_one_class_is_enough_and_a_class_without_boxes_is_no_obstacle() -> None:
    one = dataset([[0]] * 10)
    assert len(split_boxes(one)[1]) == 2
    assert split_boxes(replace(one, labels=("c0", "never")))[1]
    with pytest.raises(InvalidInput, match="no training sample of 'c1'"):
        split_boxes(dataset([[0], [0], [1]], splits=["train", "val", "val"]))
