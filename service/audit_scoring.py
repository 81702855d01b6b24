"""Lines of an audit with what the model said of them to rows with scores. No HTTP, no files, no batcher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.calibration import unweighted_probabilities
from models.card import ModelCard
from models.errors import InvalidInput
from models.tasks import TASKS
from service.audit_records import Row
from service.errors import InvalidRequest, item_problem
from service.schemas import LossOptions
from service.scoring import Given, ObserveLosses, card_of_rows, score_labels

Activation = Literal["softmax", "sigmoid"] | None
_APART = {"index", "id", "rank", "quality", "suggested_label", "is_issue", "loss"}
_FAR = 1e4
"""Logits beyond change no float32 probability, but would overflow on their way to one."""


@dataclass(frozen=True)
class Scored:
    """Rows in the order of their lines, and what their qualities are, by name."""

    rows: list[Row]
    methods: set[str]


@dataclass(frozen=True)
class Item:
    """One line's item, or why there is none.

    Attributes:
        line: its number.
        given: its row and label.
    """

    line: int
    given: Given | Exception


def audit_card(card: ModelCard, activation: Activation, outputs: int) -> ModelCard:
    """The card that rows are judged by: the model's own, or one made for rows of another model."""
    return card if activation is None else card_of_rows(outputs, activation, card)


def score_items(card: ModelCard, items: Sequence[Item], activation: Activation, observe: ObserveLosses) -> Scored:
    """Scores items, each as if it had come alone: what is wrong with one is that row's error.

    Args:
        card: by which rows are judged (`audit_card`).
        items: with their rows.
        activation: as asked.
        observe: as of `score_labels`.
    """
    rows: list[Row] = []
    methods: set[str] = set()
    good: list[Item] = []
    for item in items:
        wrong = _fault(card, item, activation)
        if wrong is None:
            good.append(item)
        else:
            rows.append(_error(item, wrong))
    _score(card, good, LossOptions.model_validate({"activation": activation}), observe, rows, methods)
    return Scored(sorted(rows, key=lambda row: row.line), methods)


def _fault(card: ModelCard, item: Item, activation: Activation) -> Exception | None:
    if isinstance(item.given, Exception):
        return item.given
    if isinstance(item.given.row, Exception):
        return item.given.row
    if activation is not None and item.given.row.shape != (card.outputs,):
        return InvalidInput(f"the row has {len(item.given.row)} numbers; the first of the audit has {card.outputs}")
    return None


def _score(
    card: ModelCard,
    items: Sequence[Item],
    options: LossOptions,
    observe: ObserveLosses,
    rows: list[Row],
    methods: set[str],
) -> None:
    """Scores items together; where that is refused, each half on its own, until the bad ones stand alone."""
    if not items:
        return
    given = [item.given for item in items if isinstance(item.given, Given)]
    answer = _answer(card, given, options, observe)
    if isinstance(answer, Exception):
        if len(items) == 1:
            rows.append(_error(items[0], answer))
            return
        half = len(items) // 2
        _score(card, items[:half], options, observe, rows, methods)
        _score(card, items[half:], options, observe, rows, methods)
        return
    methods.add(answer["parameters"]["quality_method"])
    judged = [one for one, found in zip(given, answer["items"], strict=True) if found.get("quality") is not None]
    p = iter(_probabilities(card, judged, options.activation))
    for item, one, found in zip(items, given, answer["items"], strict=True):
        rows.append(_row(card, item.line, one, found, p))


def _answer(
    card: ModelCard, given: Sequence[Given], options: LossOptions, observe: ObserveLosses
) -> dict[str, Any] | Exception:
    try:
        return score_labels(card, given, options, observe)
    except (InvalidRequest, InvalidInput) as error:
        return error


def _row(card: ModelCard, line: int, one: Given, found: dict[str, Any], p: Iterator[NDArray[np.float32]]) -> Row:
    facts = {key: value for key, value in found.items() if key not in _APART}
    if one.id is not None:
        facts["id"] = one.id
    if found.get("quality") is None:
        return Row(line, one.label, facts)
    return Row(
        line,
        one.label,
        facts,
        quality=found["quality"],
        suggested=found["suggested_label"],
        is_issue=found["is_issue"],
        loss=found["loss"],
        target=_target(card, one.label),
        p=next(p),
    )


def _target(card: ModelCard, label: Any) -> NDArray[np.int32]:
    """The given class (1,), of a soft label the likeliest; or 0 and 1 for each (C,)."""
    target = TASKS[card.task].targets(label, card)
    if card.task == "multiclass":
        return np.asarray([target if target.ndim == 0 else target.argmax()], np.int32)
    return np.asarray(target >= 0.5, np.int32)


def _probabilities(card: ModelCard, given: Sequence[Given], activation: Activation) -> NDArray[np.float32]:
    """(N, K) with nothing of the loss's bias left in them, as far as the card knows of one."""
    rows = np.asarray([one.row for one in given], np.float64).reshape(len(given), card.outputs)
    logits = np.asarray([one.kind == "logits" for one in given], bool)
    if logits.any():
        gamma, alpha = (card.loss.gamma, card.loss.alpha) if activation is None else (0.0, None)
        z = rows[logits]
        z = np.clip(z - (z.max(axis=1, keepdims=True) if card.activation == "softmax" else 0.0), -_FAR, _FAR)
        rows[logits] = unweighted_probabilities(z, card.activation, gamma, alpha)
    return rows.astype(np.float32)


def _error(item: Item, error: Exception) -> Row:
    if isinstance(error, InvalidRequest) and error.errors:
        # Its own text begins with the place in a request that there was none of.
        error = InvalidRequest("; ".join(f"{row['msg']}" for row in error.errors))
    given = item.given.label if isinstance(item.given, Given) else None
    facts: dict[str, Any] = {"error": item_problem(error)}
    if isinstance(item.given, Given) and item.given.id is not None:
        facts["id"] = item.given.id
    return Row(item.line, given, facts)


def detail_of(row: Row) -> str:
    """What is wrong with a row of an error."""
    return str(row.facts["error"]["detail"])
