"""What the routes of audits answer, as OpenAPI tells it, and the record of an audit in that form."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from service.answers import DetectedBox, ItemError, JudgedBox, ModelName
from service.audit_records import AuditRecord, AuditSummary, LineError, State


class AuditInfo(BaseModel):
    """An audit: how far it is, and what came of it."""

    id: str
    name: str | None
    state: State
    model: ModelName
    created: datetime
    finished: datetime | None
    size: int = Field(description="bytes of its items, decompressed")
    items: int = Field(description="lines that are not blank")
    done: int = Field(description="items that are scored, bad ones included")
    errors: int = Field(description="bad items; they are among the results, at the end")
    first_errors: list[LineError]
    progress: float = Field(description="done / items")
    items_per_second: float | None = Field(description="null where it does not run")
    seconds_left: float | None
    reason: str | None = Field(description="why it failed")
    summary: AuditSummary | None = Field(description="null until it is done")


class AuditList(BaseModel):
    """All audits that are kept, the oldest first."""

    audits: list[AuditInfo]


class AuditRow(BaseModel):
    """One item, as /loss scores it; rank 1 is the lowest quality, and rows without one come last.

    Of a detector it is a picture: its quality is the lowest of its boxes' and of 1 - score of what is missing most
    surely, 1 where there is neither; it is an issue where one of its boxes is, or that score is .5 or more.
    """

    rank: int
    line: int
    id: str | None = None
    given_label: Any = Field(None, description="as it came; of a detector the list of boxes")
    suggested_label: str | list[str] | None = None
    is_issue: bool | None = None
    quality: float | None = None
    loss: float | None = None
    log_p_given: float | None = None
    p_given: float | None = None
    margin: float | None = None
    loss_percentile: float | None = None
    clipped: bool | None = None
    reason: str | None = None
    classification: float | None = Field(None, description="of a detector, as the next four: the parts of the loss")
    location: float | None = None
    positives: int | None = None
    boxes: list[JudgedBox] | None = Field(None, description="each given box, as /loss judges it")
    missing: list[DetectedBox] | None = Field(None, description="objects that nobody drew, by falling score")
    error: ItemError | None = None


class AuditPage(BaseModel):
    """Rows, the worst label first."""

    items: list[AuditRow]
    next: int | None = Field(description="`after` of the next page; null on the last")


def info_of(record: AuditRecord, rate: float | None) -> AuditInfo:
    """An audit as it is shown; rate in items per second, None where it does not run."""
    return AuditInfo(
        **record.model_dump(
            include={"id", "name", "state", "size", "items", "done", "errors", "first_errors", "reason", "summary"}
        ),
        model=ModelName(name=record.model, version=record.version),
        created=datetime.fromtimestamp(record.created, UTC),
        finished=None if record.finished is None else datetime.fromtimestamp(record.finished, UTC),
        progress=record.done / record.items,
        items_per_second=rate,
        seconds_left=(record.items - record.done) / rate if rate else None,
    )
