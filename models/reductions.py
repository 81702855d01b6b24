"""What a focal loss knows of each sample, and the ways to make one number of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput
from models.focal_kernels import quiet, softplus

Denominator = Literal["none", "samples", "elements", "weights", "positives", "rows"]
ALIASES = {"weighted_mean": "mean_weighted", "mean_positive": "num_positive"}
TOTALS = {
    "softmax": ("sum", "mean", "mean_weighted"),
    "sigmoid": ("sum", "mean", "num_positive", "batchmean"),
}


@dataclass(frozen=True, eq=False)
class FocalTerms:
    """The focal loss of each sample (softmax) or element (sigmoid), before any reduction.

    `gradient`, `margin`, `log_pt` and `log_1mpt` are computed when first read and kept; until then the logits
    and targets that were given must not be changed.

    Attributes:
        kind: "softmax" or "sigmoid".
        values: losses in nats, >= 0, 0 where ignored; float32 or float64. Softmax: [N] or [N, *spatial];
            sigmoid: the shape of the logits.
        valid: bool, shape of values, false where ignored.
        count: number of valid samples or elements.
        positives: sigmoid: valid targets above 0.5; softmax: valid samples.
        weights: softmax: alpha of each sample's label (for soft targets the mean under the target), [N] or
            [N, *spatial], 1 without alpha, 0 where ignored; None for sigmoid.
        rows: N times the spatial positions; for sigmoid all axes but the class axis.
    """

    kind: Literal["softmax", "sigmoid"]
    values: NDArray[Any]
    valid: NDArray[np.bool_]
    count: int
    positives: int
    weights: NDArray[Any] | None
    rows: int
    compute_gradient: Callable[[], NDArray[Any]] = field(repr=False)
    compute_margin: Callable[[], NDArray[Any]] | None = field(repr=False)

    @cached_property
    def gradient(self) -> NDArray[Any]:
        """d(sum of values)/d(logits), shape and dtype of the computation on the logits, 0 where ignored."""
        return self.compute_gradient()

    @cached_property
    def margin(self) -> NDArray[Any] | None:
        """Log-odds of the given label, log(p_t / (1 - p_t)), shape of values, 0 where ignored; None if soft."""
        return None if self.compute_margin is None else self.compute_margin()

    @cached_property
    def log_pt(self) -> NDArray[Any] | None:
        """Log-probability of the given label, <= 0, shape of values, 0 where ignored; None for soft targets."""
        return self._minus_softplus(-1)

    @cached_property
    def log_1mpt(self) -> NDArray[Any] | None:
        """log(1 - p_t), <= 0, shape of values, 0 where ignored; None for soft targets."""
        return self._minus_softplus(1)

    def _minus_softplus(self, sign: int) -> NDArray[Any] | None:
        if self.margin is None:
            return None
        return np.where(self.valid, -softplus(sign * self.margin), np.zeros((), self.values.dtype))


@dataclass(frozen=True)
class Reduced:
    """One number made of many.

    Attributes:
        value: the reduced loss in nats, or None where it is the mean of nothing.
        denominator: what the sum was divided by; 0 where value is None, 1 for a sum.
        denominator_name: what the denominator counts.
    """

    value: float | None
    denominator: float
    denominator_name: Denominator


def total(terms: FocalTerms, reduction: str) -> Reduced:
    """Reduce the losses to one number; sums are made in float64.

    Args:
        terms: of `softmax_focal` or `sigmoid_focal`.
        reduction: "sum"; "mean" (by valid samples, for sigmoid by valid elements); softmax only: "mean_weighted"
            or "weighted_mean" (by the sum of alpha, as torch's cross_entropy with weight=); sigmoid only:
            "num_positive" or "mean_positive" (by max(1, positives), as RetinaNet) and "batchmean" (by rows).

    Raises:
        InvalidInput: a reduction that is unknown or not for this kind, or a sum beyond float64.
    """
    denominator, name = _denominator(terms, reduction)
    value = quiet(terms.values.sum)(dtype=np.float64)
    if not np.isfinite(value):
        raise InvalidInput("the sum of the losses overflows float64")
    return Reduced(float(value) / denominator if denominator else None, denominator, name)


def reduced_gradient(terms: FocalTerms, reduction: str) -> NDArray[Any]:
    """Return d(reduced loss)/d(logits), shape of the logits; zeros for the mean of nothing.

    Args:
        terms: of `softmax_focal` or `sigmoid_focal`.
        reduction: as `total` takes.

    Raises:
        InvalidInput: a reduction that is unknown or not for this kind.
    """
    denominator, _ = _denominator(terms, reduction)
    result: NDArray[Any] = terms.gradient / terms.values.dtype.type(denominator or 1.0)
    return result


def _denominator(terms: FocalTerms, reduction: str) -> tuple[float, Denominator]:
    name = ALIASES.get(reduction, reduction)
    known = TOTALS[terms.kind]
    if name not in known:
        aliases = [alias for alias, target in ALIASES.items() if target in known]
        raise InvalidInput(
            f"unknown reduction {reduction!r} for {terms.kind}; known: {', '.join((*known, *aliases))}"
            " (the losses one by one, 'none', are the terms' values)"
        )
    if name == "sum":
        return 1.0, "none"
    if name == "mean":
        return float(terms.count), "samples" if terms.kind == "softmax" else "elements"
    if name == "num_positive":
        return float(max(1, terms.positives)), "positives"
    if name == "batchmean":
        return float(terms.rows), "rows"
    return float(terms.weights.sum(dtype=np.float64)) if terms.weights is not None else float(terms.count), "weights"
