"""Audits of a detector's boxes: what `service.audit_kinds` asks of a kind of audit. A row is a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from models.box_missing import LEAST_MISSING
from models.card import ModelCard
from models.detect import BoxScores
from models.errors import InvalidInput
from service.audit_file import AuditFile
from service.audit_records import (
    ROW_BYTES,
    AuditRecord,
    AuditSummary,
    Item,
    Room,
    Row,
    Scored,
    Verdicts,
    error_row,
)
from service.audit_spool import Inspection
from service.audit_tally import Tally
from service.box_answers import GivenBoxes, box_loss_answer, box_options, given_boxes, score_picture
from service.box_items import PICTURES_AT_ONCE, arrays_of, check_item
from service.decoding import Encoded
from service.detector import RAW
from service.errors import InvalidRequest, RequestError
from service.loss_item import LossItem
from service.schemas import AuditOptions, LossOptions
from service.scoring import ObserveLosses

BOX_COLUMNS = (
    "rank",
    "line",
    "id",
    "given_label",
    "is_issue",
    "quality",
    "loss",
    "classification",
    "location",
    "positives",
    "boxes",
    "missing",
    "error",
)
_ASKED = LossOptions.model_validate({})
_BOX_BYTES, _MISSING_BYTES = 700, 140
_FACTS = ("id", "classification", "location", "positives")
_NOTE = (
    "no estimate: that takes a model of how boxes are drawn wrongly and left out; flagged are pictures with a box that "
    f"/loss flags, or with an object of a score of {LEAST_MISSING:g} or more that nobody drew"
)


def check_boxes(card: ModelCard, asked: AuditOptions) -> None:
    """Refuses options that have no meaning for boxes.

    Raises:
        InvalidRequest: there is one.
    """
    if asked.activation is not None:
        raise InvalidRequest(f"activation: model {card.name} is a detector, whose activation the card knows")


def room_of_boxes(card: ModelCard, asked: AuditOptions, found: Inspection) -> Room:
    """What the rows take: given boxes with what is said of them, and as many missing objects as are listed at most."""
    boxes = -(-_BOX_BYTES * found.boxes // found.items)
    return Room(0, ROW_BYTES + boxes + _MISSING_BYTES * _ASKED.max_missing)


class BoxJudge:
    """Judges one audit's pictures, each as /loss does where nothing but its boxes is asked.

    Args:
        card: of the model.
        record: of the audit.
    """

    pictures = PICTURES_AT_ONCE
    wish = RAW

    def __init__(self, card: ModelCard, record: AuditRecord) -> None:
        self._card = card
        self._options = box_options(card, _ASKED)

    def picture(self, sent: LossItem) -> Encoded | None:
        """The picture that the model is to look at; None where the item needs none, or is wrong anyway."""
        return sent.image if sent.boxes is not None else None

    def score(self, items: Sequence[Item], observe: ObserveLosses) -> Scored:
        """Rows, each as if its item had come alone."""
        looks = [self._look(item) for item in items]
        good = [look for look in looks if not isinstance(look, Exception)]
        given, scores = [look[0] for look in good], [look[1] for look in good]
        answer = box_loss_answer(self._card, given, scores, self._options, _ASKED.max_missing, observe)
        found = iter(from_json(to_json(answer["items"], inf_nan_mode="null")))
        rows = [
            error_row(item, look) if isinstance(look, Exception) else _row(item, next(found))
            for item, look in zip(items, looks, strict=True)
        ]
        return Scored(rows, {answer["parameters"]["quality_method"]} if good else set())

    def conclude(self, record: AuditRecord, file: AuditFile) -> tuple[AuditRecord, Verdicts | None]:
        """The audit in numbers; the rows stay as they were judged."""
        tally, pictures, issues = Tally(self._card.labels), 0, 0
        for facts, is_issue in file.facts():
            pictures += 1
            issues += is_issue
            for box in facts["boxes"]:
                if box.get("quality") is not None:
                    tally.add(box["label"], box["is_issue"], box["loss"], box["suggested_label"])
        summary = AuditSummary(
            scored=pictures,
            issues=issues,
            estimated_wrong_labels=None,
            estimated_error_rate=None,
            quality_method="; ".join(record.methods),
            guards=[],
            note=_NOTE,
            classes=tally.summaries(),
        )
        return record.model_copy(update={"summary": summary}), None

    def _look(self, item: Item) -> tuple[GivenBoxes, BoxScores] | Exception:
        sent = item.sent
        if isinstance(sent, Exception):
            return sent
        try:
            check_item(self._card, sent)
            given = given_boxes(self._card, sent.boxes, sent.id)
            raw = item.answer if sent.image is not None else arrays_of(self._card, sent)
            scores = score_picture(self._card, raw, given, self._options)
        except (RequestError, InvalidInput) as error:
            return error
        return scores if isinstance(scores, Exception) else (given, scores)


def _row(item: Item, found: Mapping[str, Any]) -> Row:
    """The row of a picture from its answer of /loss."""
    boxes = [{key: value for key, value in box.items() if key != "rank"} for box in found["boxes"]]
    missing = found["missing"]
    strongest = missing[0]["score"] if missing else 0.0
    facts = {key: found[key] for key in _FACTS if key in found} | {"boxes": boxes, "missing": missing}
    assert isinstance(item.sent, LossItem)
    return Row(
        item.line,
        item.sent.boxes,
        facts,
        quality=min([1.0 - strongest, *(box["quality"] for box in boxes if box.get("quality") is not None)]),
        is_issue=strongest >= LEAST_MISSING or any(box.get("is_issue") for box in boxes),
        loss=found["loss"],
    )


def as_json(values: Sequence[Any]) -> str:
    """A list in a cell."""
    return to_json(values, inf_nan_mode="null").decode()
