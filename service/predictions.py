"""Logits to the answers of /predict, a batch at a time; used by the service and by the offline verbs. No HTTP."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from models.task import Predictions
from models.tasks import TASKS
from service.errors import InferenceFailed, item_problem

Answer = TypeVar("Answer")


class RowAnswer(NamedTuple):
    """What is known of one image after its batch was run.

    Attributes:
        logits: (K,) float32.
        batch: the predictions of the whole batch.
        row: which row of the batch it is.
    """

    logits: NDArray[np.float32]
    batch: Predictions
    row: int

    @property
    def p(self) -> NDArray[np.float64]:
        """(L,) calibrated probabilities, one per label."""
        return np.asarray(self.batch.p[self.row])

    @property
    def best(self) -> int:
        """Index of the predicted label."""
        return int(self.batch.order[self.row, 0])


def answer_rows(card: ModelCard, logits: NDArray[np.float32]) -> list[RowAnswer | Exception]:
    """The answers of a batch of logits (N, K); a row that is not finite becomes its own error."""
    task = TASKS[card.task]
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = wide.sum()
    if math.isfinite(total):  # doubles have room for any sum of finite floats
        batch = task.predict(wide, card)
        return [RowAnswer(row, batch, n) for n, row in enumerate(logits)]
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    batch = task.predict(np.where(finite[:, None], wide, 0.0), card)
    return [
        RowAnswer(row, batch, n) if finite[n] else InferenceFailed("the model answered numbers that are not finite")
        for n, row in enumerate(logits)
    ]


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
    batch, n = answer.batch, answer.row
    p = batch.p[n].tolist()
    order = batch.order[n, :top_k].tolist()
    item["label"] = labels[order[0]]
    item["score"] = p[order[0]]
    item["margin"] = float(batch.margin[n])
    item["top_k"] = [{"label": labels[k], "probability": p[k]} for k in order]
    item["probabilities"] = p
    if batch.above is not None:
        item["labels"] = [labels[k] for k in np.flatnonzero(batch.above[n]).tolist()]
