"""How well a given label fits calibrated probabilities. Everything here is per row: no score depends on batch mates."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

WORST_WEIGHT = 0.8


def normalized_margin(p: Floats, given: Indices) -> Floats:
    """(p_given - the largest other p + 1) / 2, in [0, 1]; .5 where the given label ties with another.

    Args:
        p: (N, K) probabilities, K >= 2.
        given: (N,) class indices.

    Returns:
        (N,) float64 (cleanlab's `normalized_margin`).
    """
    rows = np.arange(len(p))
    others = p.copy()
    others[rows, given] = -1.0
    return np.asarray((p[rows, given] - others.max(axis=1) + 1.0) / 2.0)


def confident_label(p: Floats, thresholds: Floats) -> Indices:
    """The likeliest class among those that reach their own threshold, -1 where none does.

    Args:
        p: (N, K) calibrated probabilities.
        thresholds: (K,) mean probability of each class over the samples labelled with it (Northcutt et al. 2021).
    """
    confident = np.where(p >= thresholds - 1e-6, p, -1.0)
    best = confident.argmax(axis=1)
    return np.where(confident[np.arange(len(p)), best] >= 0.0, best, -1)


def worst_dominates(scores: Floats) -> Floats:
    """One score per row of element scores: an exponential moving average from the best to the worst.

    Args:
        scores: (N, C) in [0, 1], one per element of a multi-label sample.

    Returns:
        (N,) in [0, 1]; one bad element among many keeps its weight (cleanlab's multi-label aggregation).
    """
    ordered = np.sort(scores, axis=1)[:, ::-1]
    total = ordered[:, 0].copy()
    for column in ordered.T[1:]:
        total += WORST_WEIGHT * (column - total)
    return total


def ranks(quality: Floats, valid: NDArray[np.bool_]) -> Indices:
    """1 for the lowest quality, 2 for the next, in order of position where equal; 0 where not valid."""
    out = np.zeros(len(quality), np.intp)
    rows = np.flatnonzero(valid)
    out[rows[np.argsort(quality[rows], kind="stable")]] = np.arange(1, len(rows) + 1)
    return out
