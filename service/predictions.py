"""Logits to the answers of /predict, a batch at a time; used by the service and by the offline verbs. No HTTP."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from models.task import Prediction
from models.tasks import TASKS
from service.errors import InferenceFailed, item_problem

Answer = TypeVar("Answer")
_FEW = 64
"""Numbers that Python's floats take no longer for than numpy's calls do."""


class _Batch:
    """Rows that ran together, and what they mean, which is worked out for all of them when it is first asked."""

    __slots__ = ("_card", "_found", "_logits")

    def __init__(self, card: ModelCard, logits: NDArray[np.float32]) -> None:
        self._card = card
        self._logits = logits
        self._found: list[Prediction] | None = None

    def found(self, row: int) -> Prediction:
        """What a row means."""
        if self._found is None:
            self._found = TASKS[self._card.task].predict_rows(self._logits, self._card)
        return self._found[row]


class RowAnswer:
    """What is known of one image after its batch was run.

    Args:
        logits: (K,) float32.
        batch: that ran.
        row: which of it this is.
    """

    __slots__ = ("_batch", "_row", "logits")

    def __init__(self, logits: NDArray[np.float32], batch: _Batch, row: int) -> None:
        self.logits = logits
        self._batch = batch
        self._row = row

    @property
    def found(self) -> Prediction:
        """What the logits mean."""
        return self._batch.found(self._row)


def answer_rows(card: ModelCard, logits: NDArray[np.float32]) -> list[RowAnswer | Exception]:
    """The answers of a batch of logits (N, K); a row that is not finite becomes its own error."""
    if _all_finite(logits):
        batch = _Batch(card, logits)
        return [RowAnswer(row, batch, n) for n, row in enumerate(logits)]
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    batch = _Batch(card, np.where(finite[:, None], logits, 0.0))
    return [
        RowAnswer(row, batch, n) if good else InferenceFailed("the model answered numbers that are not finite")
        for n, (row, good) in enumerate(zip(logits, finite, strict=True))
    ]


def work_out(rows: Iterable[RowAnswer | Exception]) -> None:
    """Has what they mean worked out now."""
    for row in rows:
        if isinstance(row, RowAnswer):
            _ = row.found


def _all_finite(logits: NDArray[np.float32]) -> bool:
    """Whether their sum is, for which doubles have room."""
    if logits.size <= _FEW:
        return math.isfinite(sum(logits.ravel().tolist()))
    with np.errstate(invalid="ignore"):  # infinities of both signs
        return math.isfinite(np.add.reduce(logits, axis=None, dtype=np.float64))


def predict_items(
    card: ModelCard, answers: Sequence[RowAnswer | Exception], ids: Sequence[str | None], top_k: int
) -> list[dict[str, Any]]:
    """One dictionary of the form of `answers.PredictItem` per answer, in their order."""
    return fill_items(answers, ids, lambda item, answer: _fill(item, card.labels, answer, top_k))


def fill_items(
    answers: Sequence[Answer | Exception], ids: Sequence[str | None], fill: Callable[[dict[str, Any], Answer], None]
) -> list[dict[str, Any]]:
    """One dictionary per answer, with its index, its id, and its own error or what `fill` puts in."""
    items = []
    for index, (answer, name) in enumerate(zip(answers, ids, strict=True)):
        item: dict[str, Any] = {"index": index} if name is None else {"index": index, "id": name}
        if isinstance(answer, Exception):
            item["error"] = item_problem(answer)
        else:
            fill(item, answer)
        items.append(item)
    return items


def _fill(item: dict[str, Any], labels: Sequence[str], answer: RowAnswer, top_k: int) -> None:
    p, order, margin, above = answer.found
    item["label"] = labels[order[0]]
    item["score"] = p[order[0]]
    item["margin"] = margin
    item["top_k"] = [{"label": labels[k], "probability": p[k]} for k in order[:top_k]]
    item["probabilities"] = p
    if above is not None:
        item["labels"] = [labels[k] for k in above]
