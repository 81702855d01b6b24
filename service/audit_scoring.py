"""Lines of a classifier's audit with what the model said of them to rows with scores. No HTTP, no files, no batcher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.calibration import unweighted_probabilities
from models.card import ModelCard
from models.errors import InvalidInput
from models.tasks import TASKS
from service.audit_records import Item, Row, Scored, error_row
from service.errors import InvalidRequest
from service.schemas import LossOptions
from service.scoring import Given, ObserveLosses, card_of_rows, score_labels

Activation = Literal["softmax", "sigmoid"] | None
_APART = {"index", "id", "rank", "quality", "suggested_label", "is_issue", "loss"}
_FAR = 1e4
"""Logits beyond change no float32 probability, but would overflow on their way to one."""


@dataclass(frozen=True)
class _Line:
    """An item with its row and label."""

    item: Item
    given: Given


def audit_card(card: ModelCard, activation: Activation, outputs: int) -> ModelCard:
    """The card that rows are judged by: the model's own, or one made for rows of another model."""
    return card if activation is None else card_of_rows(outputs, activation, card)


def score_items(card: ModelCard, items: Sequence[Item], activation: Activation, observe: ObserveLosses) -> Scored:
    """Scores items, each as if it had come alone: what is wrong with one is that row's error.

    Args:
        card: by which rows are judged (`audit_card`).
        items: with what the model said of their pictures.
        activation: as asked.
        observe: as of `score_labels`.
    """
    rows: list[Row] = []
    methods: set[str] = set()
    good: list[_Line] = []
    for item in items:
        given = _given(card, item, activation)
        if isinstance(given, Exception):
            rows.append(error_row(item, given))
        else:
            good.append(_Line(item, given))
    _score(card, good, LossOptions.model_validate({"activation": activation}), observe, rows, methods)
    return Scored(sorted(rows, key=lambda row: row.line), methods)


def _given(card: ModelCard, item: Item, activation: Activation) -> Given | Exception:
    """The row and label of an item, or what is wrong with it."""
    sent, row = item.sent, item.answer
    if isinstance(sent, Exception):
        return sent
    if sent.boxes is not None:
        return InvalidRequest("the model is a classifier; give a label, not boxes")
    if sent.image is None:
        if activation is not None and sent.row.shape != (card.outputs,):
            return InvalidInput(f"the row has {len(sent.row)} numbers; the first of the audit has {card.outputs}")
        return Given(sent.row, sent.label, sent.id, sent.kind)
    if activation is not None:
        return InvalidRequest("activation goes with logits or probabilities; for images the card knows it")
    return row if isinstance(row, Exception) else Given(row.logits, sent.label, sent.id, sent.kind)


def _score(
    card: ModelCard,
    lines: Sequence[_Line],
    options: LossOptions,
    observe: ObserveLosses,
    rows: list[Row],
    methods: set[str],
) -> None:
    """Scores lines together; where that is refused, each half on its own, until the bad ones stand alone."""
    if not lines:
        return
    given = [line.given for line in lines]
    answer = _answer(card, given, options, observe)
    if isinstance(answer, Exception):
        if len(lines) == 1:
            rows.append(error_row(lines[0].item, answer))
            return
        half = len(lines) // 2
        _score(card, lines[:half], options, observe, rows, methods)
        _score(card, lines[half:], options, observe, rows, methods)
        return
    methods.add(answer["parameters"]["quality_method"])
    judged = [one for one, found in zip(given, answer["items"], strict=True) if found.get("quality") is not None]
    p = iter(_probabilities(card, judged, options.activation))
    for line, found in zip(lines, answer["items"], strict=True):
        rows.append(_row(card, line.item.line, line.given, found, p))


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
