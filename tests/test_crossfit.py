"""Folds: every class spread evenly, groups whole, the same for the same seed; and what is watched in training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import InvalidInput
from scripts.crossfit import InFold, assign_folds
from scripts.readers import DataSet, Sample


def data_set(labels: Sequence[int | tuple[int, ...]], groups: Sequence[str | None] | None = None) -> DataSet:
    root = Path("/data")
    samples = tuple(
        Sample(str(root / f"{row}.png"), label, f"list.csv:{row}", group=groups[row] if groups else None)
        for row, label in enumerate(labels)
    )
    multilabel = any(isinstance(label, tuple) for label in labels)
    return DataSet(root, "multilabel" if multilabel else "multiclass", ("a", "b", "c"), samples)


def test_every_class_is_spread_evenly_and_the_folds_are_alike() -> None:
    data = data_set([0] * 50 + [1] * 13 + [2] * 4)
    fold = assign_folds(data, 5, seed=0)
    assert sorted(np.bincount(fold)) == [13, 13, 13, 14, 14]
    for k, count in ((0, 50), (1, 13), (2, 4)):
        mine = np.bincount(fold[[sample.label == k for sample in data.samples]], minlength=5)
        assert mine.sum() == count and mine.max() - mine.min() <= 1


def test_the_folds_follow_from_the_seed_and_not_from_the_order() -> None:
    data = data_set([0, 1, 2] * 20)
    fold = assign_folds(data, 3, seed=1)
    back = DataSet(data.root, data.task, data.labels, data.samples[::-1])
    assert np.array_equal(assign_folds(back, 3, seed=1)[::-1], fold)
    assert not np.array_equal(assign_folds(data, 3, seed=2), fold)


def test_groups_stay_whole() -> None:
    data = data_set([0, 1] * 30, [f"g{row // 4}" for row in range(60)])
    fold = assign_folds(data, 5, seed=0)
    for start in range(0, 60, 4):
        assert len(set(fold[start : start + 4].tolist())) == 1
    with pytest.raises(InvalidInput, match="15 images or groups cannot be cut into 16 folds"):
        assign_folds(data, 16, seed=0)


def test_samples_of_several_labels_are_spread_by_their_rarest() -> None:
    fold = assign_folds(data_set([(0,)] * 40 + [(0, 2)] * 10 + [()] * 5), 5, seed=0)
    assert np.bincount(fold[40:50], minlength=5).tolist() == [2] * 5


def test_the_mean_of_the_given_labels_probability_is_over_all_times_it_was_seen() -> None:
    watch = InFold(np.array([0, 1, 1]), gamma=0.0)
    watch(np.array([0, 1]), torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log())
    watch(np.array([1]), torch.tensor([[0.2, 0.8]]).log())
    assert watch.mean[:, 0] == pytest.approx([0.8, 0.7, 0.0])


def test_of_yes_or_no_the_given_one_is_watched() -> None:
    watch = InFold(np.array([[1.0, 0.0]], np.float32), gamma=0.0)
    watch(np.array([0]), torch.logit(torch.tensor([[0.9, 0.3]])))
    assert watch.mean[0] == pytest.approx([0.9, 0.7])
