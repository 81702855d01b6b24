"""The kinds of audits: what is done in another way for a classifier's labels and for a detector's boxes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.card import ModelCard, TaskName
from service.audit_boxes import BOX_COLUMNS, BoxJudge, as_json, check_boxes, room_of_boxes
from service.audit_file import AuditFile
from service.audit_labels import LABEL_COLUMNS, LabelJudge, check_labels, joined, room_of_labels
from service.audit_records import AuditRecord, Item, Room, Scored, Verdicts
from service.audit_spool import Inspection
from service.decoding import Encoded
from service.detector import Wish
from service.loss_item import LossItem
from service.schemas import AuditOptions
from service.scoring import ObserveLosses


class Judge(Protocol):
    """Judges the items of one audit, part by part, and at its end all of them."""

    @property
    def pictures(self) -> int:
        """Lines in a part at most where there are pictures among them."""
        ...

    @property
    def wish(self) -> Wish | None:
        """What is wanted of the model for a picture; None: what a classifier answers."""
        ...

    def picture(self, sent: LossItem) -> Encoded | None:
        """The picture that the model is to look at; None where the item needs none, or is wrong anyway."""
        ...

    def score(self, items: Sequence[Item], observe: ObserveLosses) -> Scored:
        """A row for each item, in their order; what is wrong with one is that row's error, and harms no other.

        Args:
            items: with what the model said of their pictures.
            observe: is told the losses of each label.
        """
        ...

    def conclude(self, record: AuditRecord, file: AuditFile) -> tuple[AuditRecord, Verdicts | None]:
        """The record with its summary, and what is to be stored in place of the rows' own qualities; None: they stay.

        Args:
            record: of the audit, whose rows are all there.
            file: of the audit.
        """
        ...


@dataclass(frozen=True)
class AuditKind:
    """One kind.

    Attributes:
        check: raises InvalidRequest where an option has no meaning for the model.
        room: what the rows will take on disk; raises InvalidRequest where the items do not go with the options.
        judge: of an audit, by the card of its model.
        columns: of the table.
        listed: how a list is written in a cell of the table.
    """

    check: Callable[[ModelCard, AuditOptions], None]
    room: Callable[[ModelCard, AuditOptions, Inspection], Room]
    judge: Callable[[ModelCard, AuditRecord], Judge]
    columns: tuple[str, ...]
    listed: Callable[[Sequence[Any]], str]


_LABELS = AuditKind(check_labels, room_of_labels, LabelJudge, LABEL_COLUMNS, joined)
KINDS: dict[TaskName, AuditKind] = {
    "multiclass": _LABELS,
    "multilabel": _LABELS,
    "binary": _LABELS,
    "detection": AuditKind(check_boxes, room_of_boxes, BoxJudge, BOX_COLUMNS, as_json),
}
"""By the model's task."""
