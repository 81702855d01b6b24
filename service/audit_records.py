"""What is known of an audit and of its rows; stored by `service.audit_store`, shown by `service.audit_routes`."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.card import TaskName
from service.errors import InvalidRequest, item_problem
from service.loss_item import LossItem

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINAL: tuple[State, ...] = ("done", "failed", "cancelled")
FIRST_ERRORS = 10
ROW_BYTES = 512
"""About what a row of one label takes on disk beside its probabilities."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LineError(_Part):
    """What is wrong with one line."""

    line: int
    detail: str


class GuardInfo(_Part):
    """Whether the model's probabilities are honest enough to be counted with, judged by the given labels.

    Attributes:
        gap: mean largest probability minus the share of labels that are the predicted class.
        shift: total variation distance between the mean probabilities and the shares of the given labels.
        passed: both are small.
    """

    gap: float
    shift: float
    passed: bool


class ClassSummary(_Part):
    """What the audit says of one given label; of a detector's boxes count, issues and loss are those of boxes."""

    label: str
    count: int
    issues: int
    mean_loss: float | None
    most_confused_with: str | None


class AuditSummary(_Part):
    """The audit in numbers.

    Attributes:
        scored: rows with a quality; of a detector each is a picture.
        issues: of them those that look wrong.
        estimated_wrong_labels: None where `note` says why there is no estimate.
        estimated_error_rate: the same over the number of labels.
        quality_method: what the quality is.
        guards: of the probabilities; one per class where an item may have several labels.
        note: what else is to be known.
        classes: those that were given.
    """

    scored: int
    issues: int
    estimated_wrong_labels: float | None
    estimated_error_rate: float | None
    quality_method: str
    guards: list[GuardInfo]
    note: str | None
    classes: list[ClassSummary]


class AuditRecord(_Part):
    """One audit: what was asked, how far it is, what came of it.

    Attributes:
        id: names its folder, too.
        name: the caller's own.
        sha256: of the graph that it began with.
        task: of the model; records of earlier releases, all of classifiers, have none.
        activation: for rows of another model.
        outputs: probabilities that are stored of a row.
        row_bytes: about what a row takes on disk beside them.
        created: seconds since 1970.
        size: bytes of its items.
        items: lines that are not blank.
        offset: byte of the first line that is not scored yet.
        line: number of the last line that is.
        done: items that are, bad ones included.
        errors: of them bad ones.
        methods: what the qualities so far are.
        finished: seconds since 1970.
        reason: why it failed.
    """

    id: str
    name: str | None
    model: str
    version: str
    sha256: str | None
    task: TaskName = "multiclass"
    activation: Literal["softmax", "sigmoid"] | None
    outputs: int
    row_bytes: int = ROW_BYTES
    created: float
    size: int
    items: int
    state: State = "queued"
    offset: int = 0
    line: int = 0
    done: int = 0
    errors: int = 0
    first_errors: list[LineError] = []
    methods: list[str] = []
    finished: float | None = None
    reason: str | None = None
    summary: AuditSummary | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL


@dataclass(frozen=True)
class Room:
    """What rows take on disk; see `AuditRecord`."""

    outputs: int
    row_bytes: int


@dataclass(frozen=True)
class Item:
    """One line on its way to a row.

    Attributes:
        line: its number.
        sent: what stands there, or what is wrong with it.
        answer: what the model said of its picture (`RowAnswer` of a classifier, `Raw` of a detector), or why it said
            nothing; None where it was not asked.
    """

    line: int
    sent: LossItem | Exception
    answer: Any = None


@dataclass(frozen=True)
class Row:
    """One scored item.

    Attributes:
        line: its number.
        given: the label, or the list of boxes, as it came.
        facts: what else /loss says of it, `id` and `error` included, of a detector `boxes` and `missing`.
        quality: in [0, 1]; None for an error or an ignored label.
        suggested: a label's name, or names, that fit better.
        is_issue: whether it looks wrong.
        loss: focal loss.
        target: the given class (1,), or 0 and 1 for each (C,), int32; None where there is no quality, and of boxes.
        p: (K,) float32 probabilities to audit with; None where there is no quality, and of boxes.
    """

    line: int
    given: Any
    facts: dict[str, Any]
    quality: float | None = None
    suggested: str | list[str] | None = None
    is_issue: bool | None = None
    loss: float | None = None
    target: NDArray[np.int32] | None = None
    p: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Scored:
    """Rows in the order of their lines, and what their qualities are, by name."""

    rows: list[Row]
    methods: set[str]


@dataclass(frozen=True)
class Ranked:
    """A row as it is shown: rank 1 is the lowest quality; rows without one come last."""

    rank: int
    row: Row


@dataclass(frozen=True)
class Verdicts:
    """What the audit of all rows together says of N of them, instead of what each was given alone.

    Attributes:
        lines: (N,) their numbers, int64.
        quality: (N,) in [0, 1].
        is_issue: (N,).
        suggested: for each a name, names, or None.
    """

    lines: NDArray[np.int64]
    quality: NDArray[np.float64]
    is_issue: NDArray[np.bool_]
    suggested: list[str | list[str] | None]


def error_row(item: Item, error: Exception) -> Row:
    """The row of an item that cannot be scored."""
    if isinstance(error, InvalidRequest) and error.errors:
        # Its own text begins with the place in a request that there was none of.
        error = InvalidRequest("; ".join(f"{row['msg']}" for row in error.errors))
    facts: dict[str, Any] = {"error": item_problem(error)}
    sent = item.sent
    if isinstance(sent, Exception):
        return Row(item.line, None, facts)
    if sent.id is not None:
        facts["id"] = sent.id
    return Row(item.line, _repeatable(sent.label if sent.boxes is None else sent.boxes), facts)


def _repeatable(given: Any) -> Any:
    """As it came, but for what no answer can hold: half a surrogate pair becomes a question mark."""
    return json.loads(json.dumps(given, ensure_ascii=False).encode("utf-8", "replace"))


def detail_of(row: Row) -> str:
    """What is wrong with a row of an error."""
    return str(row.facts["error"]["detail"])
