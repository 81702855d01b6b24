"""Checks of what a caller may pass to a focal loss, shared by the numpy and the torch form.

Every check names the argument and the value it refuses, and raises `InvalidInput`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import InvalidInput
from models.focal_kernels import Floats, Mask, Rows, chunks

SOFT_CONVENTIONS = ("expected", "interpolated", "qfl")
LARGEST_GAMMA = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Namer:
    """Turns a flat position into the index that the caller would use."""

    shape: tuple[int, ...]

    def __call__(self, flat: int) -> str:
        """Return "3" for one axis and "(0, 3)" for more."""
        index = tuple(int(i) for i in np.unravel_index(flat, self.shape))
        return str(index[0]) if len(index) == 1 else str(index)


def check_gamma(gamma: float) -> float:
    """Return gamma as a float; it must be a finite number >= 0 (values between 0 and 1 included)."""
    number = _number("gamma", gamma)
    if not 0.0 <= number <= LARGEST_GAMMA:
        raise InvalidInput(f"gamma must be a finite number >= 0, not {gamma!r}")
    return number


def check_smoothing(label_smoothing: float) -> float:
    """Return label_smoothing as a float in [0, 1]."""
    number = _number("label_smoothing", label_smoothing)
    if not 0.0 <= number <= 1.0:
        raise InvalidInput(f"label_smoothing must be in [0, 1], not {label_smoothing!r}")
    return number


def check_soft(soft: str, *, allowed: Sequence[str] = SOFT_CONVENTIONS) -> str:
    """Return the soft-target convention, one of `allowed`."""
    if soft not in allowed:
        raise InvalidInput(f"unknown soft-target convention {soft!r}; known here: {', '.join(allowed)}")
    return soft


def is_scalar(alpha: object) -> bool:
    """Whether alpha is one number rather than a vector of class weights."""
    return not isinstance(alpha, str) and np.ndim(alpha) == 0  # type: ignore[arg-type]


def class_weights(alpha: Sequence[float] | NDArray[np.floating], classes: int) -> NDArray[np.float64]:
    """Return alpha as a float64 vector [classes] of finite weights >= 0 (above 1 allowed)."""
    try:
        weights = np.asarray(alpha, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"alpha must be numbers, not {alpha!r}") from None
    if weights.shape != (classes,):
        raise InvalidInput(f"alpha must hold one weight for each of the {classes} classes, not shape {weights.shape}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise InvalidInput(f"alpha[{bad[0]}] must be finite and >= 0, not {weights[bad[0]]}")
    return weights


def softmax_alpha(
    alpha: float | Sequence[float] | NDArray[np.floating] | None, alpha_mode: str | None, classes: int
) -> NDArray[np.float64] | None:
    """Return the class weights [classes] of a softmax loss, or None.

    A bare scalar is refused because libraries disagree on its meaning; `alpha_mode="uniform"`
    names one: the same factor for every class.
    """
    if alpha_mode not in (None, "uniform"):
        raise InvalidInput(f"unknown alpha_mode {alpha_mode!r}; known: uniform")
    if alpha is None:
        return None
    if not is_scalar(alpha):
        if alpha_mode is not None:
            raise InvalidInput(f"alpha_mode {alpha_mode!r} is for a scalar alpha, not for a vector of class weights")
        return class_weights(alpha, classes)  # type: ignore[arg-type]
    if alpha_mode is None:
        raise InvalidInput(
            f"a scalar alpha ({alpha!r}) has no agreed meaning for softmax: "
            "give one weight per class, or alpha_mode='uniform' for the same factor on every class"
        )
    return class_weights(np.full(classes, _number("alpha", alpha)), classes)


def sigmoid_alpha(
    alpha: float | Sequence[float] | NDArray[np.floating] | None, soft: str, classes: int | None
) -> float | NDArray[np.float64] | None:
    """Return alpha of a sigmoid loss: None, a float, or a vector [classes], all in [0, 1].

    Positives weigh alpha, negatives 1 - alpha. `classes` is None where the logits have no class axis.
    """
    if alpha is None:
        return None
    if soft == "qfl":
        raise InvalidInput("the soft-target convention 'qfl' takes no alpha")
    if is_scalar(alpha):
        number = _number("alpha", alpha)
        if not 0.0 <= number <= 1.0:
            raise InvalidInput(f"alpha must be in [0, 1] for sigmoid, not {alpha!r}")
        return number
    if classes is None:
        raise InvalidInput("a vector alpha needs logits with a class axis, [..., C]")
    weights = class_weights(alpha, classes)  # type: ignore[arg-type]
    bad = np.flatnonzero(weights > 1.0)
    if bad.size:
        raise InvalidInput(f"alpha[{bad[0]}] must be in [0, 1] for sigmoid, not {weights[bad[0]]}")
    return weights


def _number(name: str, value: object) -> float:
    if isinstance(value, bool | str | bytes) or value is None or np.ndim(value) != 0:  # type: ignore[arg-type]
        raise InvalidInput(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"{name} must be a number, not {value!r}") from None
    if math.isnan(number):
        raise InvalidInput(f"{name} must be a number, not nan")
    return number


def as_floats(values: ArrayLike) -> Floats:
    """Return numbers as float32 (from float32, float16) or float64 (from float64, integers)."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidInput("logits must be numbers in rows of equal length") from None
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"logits must be real numbers, not {array.dtype}")
    return array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64, copy=False)


def as_targets(targets: ArrayLike) -> NDArray[Any]:
    """Return targets as an array of numbers or booleans."""
    try:
        array = np.asarray(targets)
    except ValueError:
        raise InvalidInput("targets must be numbers in rows of equal length") from None
    if array.dtype.kind not in "fiub":
        raise InvalidInput(f"targets must be numbers, not {array.dtype}")
    return array


def as_rows(logits: Floats, targets: ArrayLike, ignore_index: int | None) -> tuple[Rows, Floats | None]:
    """Return logits [N, C, *spatial] as rows with their labels, and soft targets as rows [rows, C] or None."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise InvalidInput(f"logits must be [N, C] or [N, C, *spatial] with C >= 2, not shape {logits.shape}")
    given, shape, classes = as_targets(targets), (logits.shape[0], *logits.shape[2:]), logits.shape[1]
    namer = Namer(shape)
    flat = _class_last(logits)
    if given.shape == logits.shape:
        _refuse_outside_unit((given < 0) | (given > 1) | (given != given), given, Namer(given.shape))
        return Rows(flat, np.zeros(len(flat), np.intp), None, namer), _class_last(given)
    if given.shape != shape:
        raise InvalidInput(f"targets of shape {given.shape} fit neither {shape} (classes) nor {logits.shape} (soft)")
    if given.dtype.kind not in "iu" and given.size:
        raise InvalidInput(f"targets must be integer class indices, not {given.dtype}")
    labels = given.reshape(-1)
    ignored = np.zeros(labels.shape, np.bool_) if ignore_index is None else labels == ignore_index
    bad = np.flatnonzero(((labels < 0) | (labels >= classes)) & ~ignored)
    if bad.size:
        raise InvalidInput(f"target {labels[bad[0]]} of row {namer(int(bad[0]))} is not a class in 0..{classes - 1}")
    safe = np.where(ignored, 0, labels).astype(np.intp)
    return Rows(flat, safe, ~ignored if ignored.any() else None, namer), None


def from_rows(rows: Floats, shape: tuple[int, ...]) -> Floats:
    """Undo `as_rows`: [rows, C] to [N, C, *spatial]."""
    if len(shape) == 2:
        return rows
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1))


def as_mask(valid: Mask | None, shape: tuple[int, ...]) -> Mask:
    """Return a mask of the shape; all true, without memory of its own, where valid is None."""
    return np.broadcast_to(np.True_, shape) if valid is None else valid.reshape(shape)


def refuse_overflow(values: Floats, shape: tuple[int, ...]) -> None:
    """Raise where a loss is not finite, naming its place in `shape`."""
    for part in chunks(values.size, 1):
        bad = np.flatnonzero(~np.isfinite(values[part]))
        if bad.size:
            raise InvalidInput(f"loss of row {Namer(shape)(part.start + int(bad[0]))} overflows {values.dtype}")


def refuse_targets_outside(t: Floats, start: int, name: Namer) -> None:
    """Raise for a target outside [0, 1] in a flat chunk that starts at `start`."""
    _refuse_outside_unit((t < 0) | (t > 1) | (t != t), t, name, start)


def _refuse_outside_unit(outside: Mask, given: NDArray[Any], name: Namer, start: int = 0) -> None:
    bad = np.flatnonzero(outside)
    if bad.size:
        place = name(start + int(bad[0]))
        raise InvalidInput(f"target {given.reshape(-1)[bad[0]]} at {place} is not in [0, 1]")


def _class_last(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.ndim == 2 else np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
