"""Sigmoid focal loss over the flat elements of an array, chunk by chunk (numpy)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models import loss_arguments as check
from models.errors import InvalidInput
from models.focal_kernels import CHUNK, Floats, Mask, focal_of_margin, quiet, slope_of_margin
from models.focal_soft import Weight, sigmoid_slopes, sigmoid_values


@dataclass(frozen=True)
class Rule:
    """What is computed of each element: gamma, the soft-target convention, the smoothing."""

    gamma: float
    soft: str
    smoothing: float


@dataclass(frozen=True, eq=False)
class Elements:
    """Checked logits and targets, flat.

    Attributes:
        logits: [n] float32 or float64, finite where valid.
        targets: [n] any numeric dtype, in [0, 1] where valid.
        positive: [n] bool, target above 0.5 and valid.
        valid: [n] bool, or None when every element counts.
        is_hard: every valid target is 0 or 1 and nothing smooths it.
        positives: number of valid targets above 0.5.
        step: elements of a chunk, a multiple of the number of classes.
        weights: (of positives, of negatives), numbers or [step] arrays that repeat the classes.
    """

    logits: Floats
    targets: NDArray[np.generic]
    positive: Mask
    valid: Mask | None
    is_hard: bool
    positives: int
    step: int
    weights: tuple[Weight, Weight] | None

    def count(self) -> int:
        """Return the number of valid elements."""
        return self.logits.size if self.valid is None else int(np.count_nonzero(self.valid))

    @quiet
    def values(self, rule: Rule) -> Floats:
        """Return the loss of each element, [n]."""
        out = np.empty_like(self.logits)
        for part in self._parts():
            if self.is_hard:
                out[part] = focal_of_margin(self._margin_of(part), rule.gamma)
                self._weigh(out[part], part)
            else:
                z, t = self._soft_of(part, rule)
                out[part] = sigmoid_values(z, t, rule.gamma, rule.soft, *self._weights_of(z.size))
        return self._blank(out)

    @quiet
    def gradient(self, rule: Rule) -> Floats:
        """Return d loss / d logit of each element, [n]."""
        out = np.empty_like(self.logits)
        for part in self._parts():
            if self.is_hard:
                slope = slope_of_margin(self._margin_of(part), rule.gamma)
                np.multiply(slope, self._signs(part), out=out[part])
                self._weigh(out[part], part)
            else:
                z, t = self._soft_of(part, rule)
                out[part] = sigmoid_slopes(z, t, rule.gamma, rule.soft, *self._weights_of(z.size))
        return self._blank(out)

    def margin(self) -> Floats:
        """Return the log-odds of the given label of each element, [n], 0 where ignored."""
        out = np.empty_like(self.logits)
        for part in self._parts():
            out[part] = self._margin_of(part)
        return out

    def _parts(self) -> Iterator[slice]:
        for start in range(0, self.logits.size, self.step):
            yield slice(start, min(start + self.step, self.logits.size))

    def _margin_of(self, part: slice) -> Floats:
        d = self._signs(part)
        d *= self.logits[part]
        if self.valid is not None:
            d[~self.valid[part]] = 0
        return d

    def _signs(self, part: slice) -> Floats:
        # Arithmetic instead of a selection by mask, which is slow where the mask is random.
        signs: Floats = self.positive[part].astype(self.logits.dtype)
        signs *= 2
        signs -= 1
        return signs

    def _soft_of(self, part: slice, rule: Rule) -> tuple[Floats, Floats]:
        z, t = self.logits[part], self.targets[part].astype(self.logits.dtype)
        if self.valid is not None:
            z, t = np.where(self.valid[part], z, 0), np.where(self.valid[part], t, 0)
        if rule.smoothing:
            t = t * (1 - rule.smoothing) + rule.smoothing / 2
        return z, t

    def _weights_of(self, size: int) -> tuple[Weight, Weight]:
        if self.weights is None:
            return 1.0, 1.0
        positive, negative = self.weights
        if isinstance(positive, float) or isinstance(negative, float):
            return positive, negative
        return positive[:size], negative[:size]

    def _weigh(self, chunk: Floats, part: slice) -> None:
        if self.weights is not None:
            positive, negative = self._weights_of(chunk.size)
            yes: Floats = self.positive[part].astype(chunk.dtype)
            weight = yes * positive
            np.subtract(1, yes, out=yes)
            yes *= negative
            weight += yes
            chunk *= weight

    def _blank(self, out: Floats) -> Floats:
        if self.valid is not None:
            out[~self.valid] = 0
        return out


def elements_of(
    logits: Floats,
    targets: ArrayLike,
    smoothing: float,
    ignore_index: float | None,
    alpha: float | NDArray[np.float64] | None,
) -> Elements:
    """Check logits and targets of one shape, element by element, and flatten them.

    Raises:
        InvalidInput: shapes that differ, a valid target outside [0, 1], a valid logit that is not finite.
    """
    given = check.as_targets(targets)
    if given.shape != logits.shape or logits.ndim == 0:
        raise InvalidInput(f"targets of shape {given.shape} do not fit logits of shape {logits.shape}")
    flat, t, name = logits.reshape(-1), given.reshape(-1), check.Namer(logits.shape)
    classes = max(1, logits.shape[-1]) if logits.ndim > 1 else 1
    step = max(1, CHUNK // classes) * classes
    positive = np.empty(flat.shape, np.bool_)
    valid = None if ignore_index is None else np.empty(flat.shape, np.bool_)
    hard, whole = smoothing == 0.0, t.dtype.kind != "f"
    for start in range(0, flat.size, step):
        part = slice(start, min(start + step, flat.size))
        if valid is None or ignore_index is None:
            z, label = flat[part], t[part]
        else:
            np.not_equal(t[part], ignore_index, out=valid[part])
            z, label = np.where(valid[part], flat[part], 0), np.where(valid[part], t[part], 0)
        _refuse_non_finite(z, start, name)
        np.greater(label, 0 if whole else 0.5, out=positive[part])
        if (label.min() < 0 or label.max() > 1) if whole else not ((label == 0) | (label == 1)).all():
            check.refuse_targets_outside(label, start, name)
            hard = False
    some = None if valid is None or valid.all() else valid
    weights = _weights(alpha, step // classes, logits.dtype)
    return Elements(flat, t, positive, some, hard, int(np.count_nonzero(positive)), step, weights)


@quiet
def _refuse_non_finite(z: Floats, start: int, name: check.Namer) -> None:
    if np.isfinite(z.sum()):
        return
    bad = np.flatnonzero(~np.isfinite(z))
    if bad.size:
        raise InvalidInput(f"logit at {name(start + int(bad[0]))} is not finite")


def _weights(
    alpha: float | NDArray[np.float64] | None, repeats: int, dtype: np.dtype[np.floating]
) -> tuple[Weight, Weight] | None:
    if alpha is None:
        return None
    if isinstance(alpha, float):
        return alpha, 1.0 - alpha
    return np.tile(alpha, repeats).astype(dtype), np.tile(1.0 - alpha, repeats).astype(dtype)
