"""The rows of an audit as bytes: a page of JSON, a line each, a table."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from models.cells import neutralize
from service.audit_kinds import AuditKind
from service.audit_records import Ranked


@dataclass(frozen=True)
class Form:
    """What a stream of rows begins with, and some rows of it."""

    head: bytes
    body: Callable[[Sequence[Ranked]], bytes]


def page_of(rows: Sequence[Ranked], total: int) -> bytes:
    """An `AuditPage` of rows, of an audit of `total` rows."""
    last = rows[-1].rank if rows else total
    body = {"items": [row_of(row) for row in rows], "next": last if last < total else None}
    return to_json(body, inf_nan_mode="null")


def row_of(ranked: Ranked) -> dict[str, Any]:
    """A row in the form of `AuditRow`; what is not known is left out."""
    row = ranked.row
    answer = {"rank": ranked.rank, "line": row.line, "given_label": row.given, **row.facts}
    if "error" in row.facts:
        return answer
    return answer | {
        "suggested_label": row.suggested,
        "is_issue": row.is_issue,
        "quality": row.quality,
        "loss": row.loss,
    }


def _as_lines(kind: AuditKind) -> Form:
    return Form(b"", lambda rows: b"".join(to_json(row_of(row), inf_nan_mode="null") + b"\n" for row in rows))


def _as_table(kind: AuditKind) -> Form:
    head = (",".join(kind.columns) + "\r\n").encode()

    def body(rows: Sequence[Ranked]) -> bytes:
        out = io.StringIO(newline="")
        table = csv.writer(out)
        for row in rows:
            answer = row_of(row)
            answer["error"] = answer.get("error", {}).get("detail")
            table.writerow([_cell(answer.get(column), kind) for column in kind.columns])
        return out.getvalue().encode()

    return Form(head, body)


def _cell(value: Any, kind: AuditKind) -> Any:
    if isinstance(value, list):
        value = kind.listed(value)
    return neutralize(value) if isinstance(value, str) else "" if value is None else value


FORMS: dict[str, Callable[[AuditKind], Form]] = {"application/x-ndjson": _as_lines, "text/csv": _as_table}
"""By media type: all rows, as they are read."""
