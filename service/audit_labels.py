"""Audits of a classifier's labels: what `service.audit_kinds` asks of a kind of audit."""

from collections.abc import Sequence

from models.card import ModelCard
from service.audit_file import AuditFile
from service.audit_records import ROW_BYTES, AuditRecord, Item, Room, Scored, Verdicts
from service.audit_scoring import audit_card, score_items
from service.audit_spool import PART_PICTURES, Inspection
from service.audit_verdict import conclude
from service.decoding import Encoded
from service.errors import InvalidRequest
from service.loss_item import LossItem
from service.schemas import AuditOptions
from service.scoring import ObserveLosses

LABEL_COLUMNS = (
    "rank",
    "line",
    "id",
    "given_label",
    "suggested_label",
    "is_issue",
    "quality",
    "p_given",
    "margin",
    "loss",
    "error",
)


def check_labels(card: ModelCard, asked: AuditOptions) -> None:
    """A classifier takes every option."""


def room_of_labels(card: ModelCard, asked: AuditOptions, found: Inspection) -> Room:
    """What the rows take: probabilities of every class.

    Raises:
        InvalidRequest: activation is given, but no rows.
    """
    if asked.activation is None:
        return Room(card.outputs, ROW_BYTES)
    if found.width is None:
        raise InvalidRequest("activation goes with logits or probabilities; the first lines have none")
    return Room(found.width, ROW_BYTES)


class LabelJudge:
    """Judges one audit's labels.

    Args:
        card: of the model.
        record: of the audit.
    """

    pictures = PART_PICTURES
    wish = None

    def __init__(self, card: ModelCard, record: AuditRecord) -> None:
        self._card = audit_card(card, record.activation, record.outputs)
        self._activation = record.activation

    def picture(self, sent: LossItem) -> Encoded | None:
        """The picture that the model is to look at; None where the item needs none, or is wrong anyway."""
        return sent.image if self._activation is None and sent.boxes is None else None

    def score(self, items: Sequence[Item], observe: ObserveLosses) -> Scored:
        """Rows, each as if its item had come alone."""
        return score_items(self._card, items, self._activation, observe)

    def conclude(self, record: AuditRecord, file: AuditFile) -> tuple[AuditRecord, Verdicts | None]:
        """Judges all rows together by the noise that is in them."""
        return conclude(self._card, record, file)


def joined(values: Sequence[object]) -> str:
    """A list in a cell: names as a form takes them."""
    return "|".join(map(str, values))
