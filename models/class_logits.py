"""The class logits of one image at a detector's anchors: what is asked of them, and numpy's answers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.boxes import Floats, Indices, parts_of
from models.calibration import log_sigmoid
from models.card import Alpha
from models.losses import sigmoid_focal

NO_CLASS = -1
"""Given to an anchor that is background: none of the classes."""


@dataclass(frozen=True)
class ClassSummary:
    """What is the most at each of A anchors, whatever was given there.

    Attributes:
        top: (A,) int64, the likeliest class.
        best: (A,) its logit.
        second: (A,) the next largest logit; with a single class one whose probability is 0.
        nothing: (A,) minus the log-probability that none of the classes is there, nats, >= 0.
    """

    top: Indices
    best: Floats
    second: Floats
    nothing: Floats


class ClassLogits(Protocol):
    """Class logits (A, K) of one image, wherever they lie; only what is asked for comes to the host."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(A, K)."""
        ...

    @property
    def is_finite(self) -> bool:
        """Whether all are finite; nothing else is asked where they are not."""
        ...

    @property
    def summary(self) -> ClassSummary:
        """Of each anchor."""
        ...

    def rows(self, anchors: Indices) -> NDArray[np.floating]:
        """The logits (R, K) of anchors (R,), as they are."""
        ...

    def of_classes(self, anchors: Indices, classes: Indices) -> Floats:
        """The logits (R,) of classes (R,) at anchors (R,)."""
        ...

    def focal(self, anchors: Indices, classes: Indices, gamma: float, alpha: Alpha, smoothing: float) -> Floats:
        """Focal loss of anchors that are given a class, summed over the K yes/no questions of each.

        Args:
            anchors: (R,).
            classes: (R,) what each is given, NO_CLASS for background.
            gamma: focusing parameter, >= 0.
            alpha: None, a number in [0, 1], or one per class.
            smoothing: label smoothing, in [0, 1].

        Returns:
            (R,) float64, nats, >= 0.

        Raises:
            InvalidInput: a parameter out of its range.
        """
        ...


class HostLogits:
    """Logits in an array; losses in float64.

    Args:
        array: (A, K) float.
    """

    def __init__(self, array: NDArray[np.floating]) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's: (A, K)."""
        return self._array.shape

    @cached_property
    def is_finite(self) -> bool:
        """Whether all are finite."""
        return bool(np.isfinite(self._array).all())

    @cached_property
    def summary(self) -> ClassSummary:
        """Of each anchor."""
        logits = np.asarray(self._array, np.float64)
        rows, top = np.arange(len(logits)), logits.argmax(axis=1)
        nothing = -log_sigmoid(-logits).sum(axis=1)
        others = logits.copy()
        others[rows, top] = -np.inf
        return ClassSummary(top, logits[rows, top], others.max(axis=1), nothing)

    def rows(self, anchors: Indices) -> NDArray[np.floating]:
        """The logits (R, K) of anchors (R,), as they are."""
        return self._array[anchors]

    def of_classes(self, anchors: Indices, classes: Indices) -> Floats:
        """The logits (R,) of classes (R,) at anchors (R,)."""
        return np.asarray(self._array[anchors, classes], np.float64)

    def focal(self, anchors: Indices, classes: Indices, gamma: float, alpha: Alpha, smoothing: float) -> Floats:
        """Focal loss (R,), as `ClassLogits.focal` describes it, worked on in parts."""
        out, count = np.zeros(len(anchors)), self._array.shape[1]
        for first, last in parts_of(len(anchors), count):
            given = classes[first:last, None] == np.arange(count)
            logits = np.asarray(self._array[anchors[first:last]], np.float64)
            terms = sigmoid_focal(logits, given.astype(np.float64), gamma=gamma, alpha=alpha, label_smoothing=smoothing)
            out[first:last] = terms.values.sum(axis=1)
        return out
