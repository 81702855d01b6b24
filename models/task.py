"""What a kind of model answers. A task has three verbs: `targets` (labels to numbers), `predict`, and `score`.

A new kind of model is one file with these verbs and one line in `models/tasks.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.card import Alpha, ModelCard
from models.losses import FocalTerms

Floats = NDArray[np.float64]
Reduction = Literal[
    "none", "mean", "sum", "mean_positive", "num_positive", "mean_weighted", "weighted_mean", "batchmean"
]

Label = int | str | Sequence[str] | Sequence[float]
"""A given label as people write it: index, name, list of names (multi-label), or a soft vector of K numbers."""


class Prediction(NamedTuple):
    """What the model says of one image, one entry per label of the card; as a row of `Predictions`.

    Attributes:
        p: (L,) calibrated probabilities.
        order: (L,) label indices, the predicted one first, then by falling probability.
        margin: the predicted label's probability minus the next best, or its distance to the threshold.
        above: multi-label only: indices of the labels at or above their decision thresholds.
    """

    p: list[float]
    order: list[int]
    margin: float
    above: list[int] | None = None


@dataclass(frozen=True)
class Predictions:
    """What the model says of N images, one row per image and one column per label of the card.

    Attributes:
        p: (N, L) calibrated probabilities, float64.
        order: (N, L) label indices, the predicted one first, then by falling probability.
        margin: (N,) the predicted label's probability minus the next best; for sigmoid tasks its distance to the
            decision threshold.
        above: (N, L) bool, multi-label only: the labels at or above their decision thresholds.
    """

    p: Floats
    order: NDArray[np.intp]
    margin: Floats
    above: NDArray[np.bool_] | None = None

    def rows(self) -> list[Prediction]:
        """Image by image."""
        above = [None] * len(self.p) if self.above is None else [np.flatnonzero(row).tolist() for row in self.above]
        columns = self.p.tolist(), self.order.tolist(), self.margin.tolist(), above
        return [Prediction(*row) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class ScoreOptions:
    """How given labels are scored; what a request leaves out comes from the card.

    Attributes:
        gamma: focusing parameter, >= 0; 0 is cross-entropy.
        alpha: class weights of the loss (never of the quality).
        alpha_mode: `uniform` lets a single alpha multiply every class of a softmax; without it that is refused.
        label_smoothing: in [0, 1).
        ignore_index: labels of this index are not scored.
        reduction: what the batch's value is.
        objectlab: of boxes: whether ObjectLab's scores are computed, too.
    """

    gamma: float
    alpha: Alpha
    alpha_mode: Literal["uniform"] | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    reduction: Reduction = "mean"
    objectlab: bool = False


@dataclass(frozen=True)
class LabelScores:
    """Scores of N given labels, one column per fact; row i is item i.

    Attributes:
        terms: the focal loss with its gradient (models.losses); values summed over classes give `loss`.
        loss: (N,) focal loss of the given label, natural logarithm, with gamma and alpha as asked.
        log_p_given: (N,) log-probability of the given label, of the logits as they are.
        margin: (N,) in [0, 1]: (p_given - largest other p + 1) / 2; .5 = the given label ties with another.
        quality: (N,) in [0, 1], 0 = surely wrong: the posterior under the noise that the card knows, else the margin on
            calibrated probabilities.
        suggested: (N,) the label that fits better, None where the given one stands. Indices; a tuple for multi-label.
        is_issue: (N,) bool.
        valid: (N,) bool; False where ignored (its numbers mean nothing).
        percentile: (N,) share of the class's validation losses that lie below this one; NaN where not known.
    """

    terms: FocalTerms
    loss: Floats
    log_p_given: Floats
    margin: Floats
    quality: Floats
    suggested: list[int | tuple[int, ...] | None]
    is_issue: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    percentile: Floats


class Task(Protocol):
    """The three verbs."""

    def targets(self, label: Any, card: ModelCard) -> NDArray[Any]:
        """A label as numbers: (K,) soft or 0/1 float64, or () int64, an index.

        Raises:
            InvalidLabel: not a label of this model.
        """
        ...

    def predict(self, logits: NDArray[np.floating], card: ModelCard) -> Predictions:
        """Predictions for logits (N, K)."""
        ...

    def predict_rows(self, logits: NDArray[np.floating], card: ModelCard) -> list[Prediction]:
        """As `predict` within rounding, for logits (N, K) of finite numbers, image by image."""
        ...

    def score(
        self, rows: Floats, targets: NDArray[Any], card: ModelCard, options: ScoreOptions, raw: NDArray[np.bool_]
    ) -> LabelScores:
        """Scores given labels.

        Args:
            rows: (N, K) logits.
            targets: as `targets` made them, stacked.
            card: of the model.
            options: what to compute.
            raw: (N,) whether a row is this model's own output, which the card's calibration corrects; False for
                final probabilities that became logits, and for rows of another model.

        Raises:
            InvalidInput: a parameter out of its range.
        """
        ...
