from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput
from scripts.readers import DataSet, Sample
from scripts.splits import split_dataset

FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**32)


def dataset(
    labels: Sequence[int | tuple[int, ...]],
    task: Literal["multiclass", "multilabel"] = "multiclass",
    groups: Sequence[str | None] | None = None,
    splits: Sequence[str | None] | None = None,
    root: str = "/data",
) -> DataSet:
    flat = [k for label in labels for k in ((label,) if isinstance(label, int) else label)]
    nothing: list[str | None] = [None] * len(labels)
    samples = tuple(
        Sample(str(Path(root, f"{n:04d}.png")), label, f"list.csv:{n + 2}", split, group)
        for n, (label, split, group) in enumerate(zip(labels, splits or nothing, groups or nothing, strict=True))
    )
    return DataSet(Path(root), task, tuple(f"c{k}" for k in range(max(flat, default=0) + 1)), samples)


def long_tail(sizes: list[int]) -> list[int]:
    return [k for k, size in enumerate(sizes) for _ in range(size)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), FRACTIONS, SEEDS)
def test_every_class_keeps_its_share_at_least_one_on_each_side(sizes: list[int], fraction: float, seed: int) -> None:
    sizes[0] += 1  # else nothing might be left to validate with
    train, val = split_dataset(dataset(long_tail(sizes)), fraction=fraction, seed=seed)
    counts = Counter(sample.label for sample in val)
    assert sorted(sample.path for sample in (*train, *val)) == sorted(
        Path(f"/data/{n:04d}.png") for n in range(sum(sizes))
    )
    for k, size in enumerate(sizes):
        assert counts[k] == min(max(round(fraction * size), 1), size - 1)


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(30)), SEEDS)
def test_the_split_depends_on_the_seed_and_not_on_order_or_place(order: list[int], seed: int) -> None:
    data = dataset(long_tail([20, 7, 3]))
    shuffled = replace(data, samples=tuple(data.samples[n] for n in order))
    moved = dataset(long_tail([20, 7, 3]), root="/elsewhere")
    first = split_dataset(data, seed=seed)
    assert split_dataset(shuffled, seed=seed) == first
    assert [s.path.name for s in split_dataset(moved, seed=seed)[1]] == [s.path.name for s in first[1]]


def test_another_seed_draws_other_samples() -> None:
    data = dataset(long_tail([200, 100]))
    assert split_dataset(data, seed=0)[1] != split_dataset(data, seed=1)[1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=8, max_size=80), FRACTIONS, SEEDS)
def test_no_group_is_on_both_sides_and_no_class_leaves_training(
    pairs: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    pairs += [(k, 100 + 2 * k + n) for k in range(4) for n in range(2)]  # two groups of its own for every class
    data = dataset([label for label, _ in pairs], groups=[f"g{group}" for _, group in pairs])
    train, val = split_dataset(data, fraction=fraction, seed=seed)
    assert {sample.group for sample in train}.isdisjoint(sample.group for sample in val)
    assert {sample.label for sample in train} == {sample.label for sample in val} == {0, 1, 2, 3}


def test_groups_of_even_size_come_near_the_fraction() -> None:
    labels = [n % 3 for n in range(600)]
    data = dataset(labels, groups=[f"patient {n // 6}" for n in range(600)])
    _, val = split_dataset(data, fraction=0.2)
    counts = Counter(sample.label for sample in val)
    assert all(36 <= counts[k] <= 44 for k in range(3))


@pytest.mark.parametrize("seed", range(8))
def test_a_group_far_larger_than_the_validation_part_stays_in_training(seed: int) -> None:
    labels = [n % 2 for n in range(200)]
    data = dataset(labels, groups=["the clinic"] * 100 + [f"g{n}" for n in range(100)])
    train, val = split_dataset(data, fraction=0.2, seed=seed)
    assert len(val) == 40 and "the clinic" in {sample.group for sample in train}


def test_where_every_group_is_too_large_one_is_taken_all_the_same() -> None:
    train, val = split_dataset(dataset([0, 1] * 20, groups=["left"] * 20 + ["right"] * 20), fraction=0.1)
    assert (len(train), len(val)) == (20, 20)


def test_a_sample_without_a_group_is_a_group_of_its_own() -> None:
    data = dataset([0, 1] * 20, groups=[None] * 40)
    assert split_dataset(data) == split_dataset(dataset([0, 1] * 20))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sets(st.integers(0, 4)).map(lambda labels: tuple(sorted(labels))), min_size=5, max_size=80),
    FRACTIONS,
    SEEDS,
)
def test_every_label_of_several_stays_in_training(labels: list[tuple[int, ...]], fraction: float, seed: int) -> None:
    labels += [(k,) for k in range(5) for _ in range(2)]
    train, val = split_dataset(dataset(labels, "multilabel"), fraction=fraction, seed=seed)
    for part in (train, val):
        assert {k for sample in part for k in sample.classes} == set(range(5))


def test_several_labels_come_near_the_fraction_and_so_does_no_label() -> None:
    labels: list[tuple[int, ...]] = [(), (0,), (0, 1), (1, 2), (0, 2)] * 40
    _, val = split_dataset(dataset(labels, "multilabel"), fraction=0.25)
    counts = Counter(k for sample in val for k in sample.classes or (-1,))
    assert counts[-1] == 10
    assert all(abs(counts[k] - n) <= 3 for k, n in {0: 30, 1: 20, 2: 20}.items())


def test_a_given_validation_part_wins_and_test_samples_are_in_neither() -> None:
    data = dataset([0, 1, 0, 1, 0, 1], splits=["train", "train", "val", "val", "test", None])
    train, val = split_dataset(data)
    assert [sample.path.name for sample in train] == ["0000.png", "0001.png", "0005.png"]
    assert [sample.path.name for sample in val] == ["0002.png", "0003.png"]


def test_without_a_validation_part_one_is_drawn_from_training_and_never_from_test() -> None:
    data = dataset([0, 1] * 30, splits=["train"] * 40 + ["test"] * 20)
    train, val = split_dataset(data)
    assert len(train) + len(val) == 40 and len(val) == 6


def test_a_class_with_one_sample_stays_in_training() -> None:
    train, val = split_dataset(dataset([0, 0, 0, 0, 1]))
    assert 1 in {sample.label for sample in train} and 1 not in {sample.label for sample in val}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (dataset([0, 0, 0]), "all samples are of one class"),
        (dataset([0, 1, 2]), "no sample is left for validation"),
        (dataset([0, 1] * 5, groups=["one"] * 10), "no sample is left for validation"),
        (dataset([0, 1], splits=["val", "val"]), "no sample is left for training"),
        (dataset([0, 1], splits=["test", "test"]), "no sample is left for training"),
        (dataset([0, 0, 1], splits=["train", "train", "val"]), "no training sample of 'c1'"),
        (dataset([0, 0, 2, 2]), "no training sample of 'c1'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_words(data: DataSet, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        split_dataset(data)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_fraction_outside_zero_and_one_is_refused(fraction: float) -> None:
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        split_dataset(dataset([0, 1] * 5), fraction=fraction)
