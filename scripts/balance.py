"""How often each class occurs, and the class weights of the loss that follow from it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.card import TaskName
from models.errors import InvalidInput
from scripts.readers import Sample

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def count_classes(samples: Sequence[Sample], classes: int) -> Counts:
    """(classes,) how many samples carry each class."""
    flat = [k for sample in samples for k in sample.classes]
    return np.bincount(np.asarray(flat, np.int64), minlength=classes).astype(np.int64)


def encode_targets(samples: Sequence[Sample], task: TaskName, classes: int) -> NDArray[np.int64] | NDArray[np.float32]:
    """Labels as numbers: (N,) int64 indices for multiclass; float32 0 and 1, (N, classes), or (N, 1) for binary."""
    if task == "multilabel":
        out = np.zeros((len(samples), classes), np.float32)
        for row, sample in enumerate(samples):
            out[row, list(sample.classes)] = 1.0
        return out
    given = np.array([sample.classes[0] for sample in samples], np.int64)
    return given if task == "multiclass" else given[:, None].astype(np.float32)


def effective_number(counts: Counts, beta: float) -> Floats:
    """(1 - beta^n) / (1 - beta) of each count (Cui et al. 2019): n samples are worth that many."""
    return np.asarray(-np.expm1(counts * np.log(beta)) / (1.0 - beta) if beta > 0 else np.ones(len(counts)))


def choose_alpha(
    weighting: str | float, beta: float, task: TaskName, counts: Counts, total: int
) -> float | list[float] | None:
    """The loss's alpha.

    Args:
        weighting: "none", "balanced" (inverse frequency), "class-balanced" (inverse effective number), or a number.
        beta: of class-balanced.
        task: what the labels mean.
        counts: (classes,) training samples of each class.
        total: training samples.

    Returns:
        None; one weight per class with mean 1 for a multiclass task; for sigmoid tasks the weight of positives in
        [0, 1] (negatives weigh the rest): per class, or one number for a binary task.

    Raises:
        InvalidInput: a single number for a multiclass task.
    """
    if weighting == "none":
        return None
    if not isinstance(weighting, str):
        if task == "multiclass":
            raise InvalidInput("--alpha with one number is for multilabel and binary; use balanced or class-balanced")
        return float(weighting)

    def worth(numbers: Counts) -> Floats:
        if weighting == "balanced":
            return np.maximum(numbers, 1).astype(np.float64)
        return effective_number(np.maximum(numbers, 1), beta)

    weights = 1.0 / worth(counts)
    if task == "multiclass":
        return [float(weight) for weight in weights / weights.mean()]
    shares = weights / (weights + 1.0 / worth(total - counts))
    return float(shares[1]) if task == "binary" else [float(share) for share in shares]


def format_counts(labels: Sequence[str], train: Counts, validation: Counts) -> str:
    """A table of classes with their samples, and the imbalance: the largest class over the smallest."""
    width = max(5, *(len(label) for label in labels))
    lines = [f"{'class':{width}}  {'train':>8}  {'valid':>8}"]
    lines += [f"{label:{width}}  {train[k]:8d}  {validation[k]:8d}" for k, label in enumerate(labels)]
    lines.append(f"{'sum':{width}}  {train.sum():8d}  {validation.sum():8d}")
    return "\n".join([*lines, f"imbalance {train.max() / max(1, train.min()):.1f} : 1"])
