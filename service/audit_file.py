"""One audit on disk: a folder with its items and a SQLite database, which holds its record and its rows.

Every part of the rows is written in one transaction with the record that says how far the audit is: after a crash each
row is there once, and the next part is known. A connection lives for one call, so that any thread may make it.
"""

import json
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.errors import InvalidInput
from service.audit_records import AuditRecord, Ranked, Row, Verdicts

_TABLES = """
CREATE TABLE audit (one INTEGER PRIMARY KEY CHECK (one = 0), record TEXT NOT NULL);
CREATE TABLE rows (
    line INTEGER PRIMARY KEY, rank INTEGER, given TEXT NOT NULL, facts TEXT NOT NULL, quality REAL, suggested TEXT,
    is_issue INTEGER, loss REAL, target BLOB, p BLOB
);
"""
_RANK = """
UPDATE rows SET rank = sorted.place FROM (
    SELECT line AS number, row_number() OVER (ORDER BY quality IS NULL, quality, line) AS place FROM rows
) AS sorted WHERE line = sorted.number
"""
_SHOWN = "rank, line, given, facts, quality, suggested, is_issue, loss"
_GIVEN, _FACTS = 2, 3
_AT_ONCE = 4096
_PAGE_TEXT = 4 * 1024 * 1024
"""A page ends after so many characters: a picture may have thousands of boxes."""


class AuditFile:
    """The folder of one audit.

    Args:
        folder: which is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = folder / "items.ndjson"
        self.matrix = folder / "probabilities.f32"
        self._database = folder / "audit.sqlite"

    def create(self, record: AuditRecord) -> None:
        """Makes the database; from here on the audit survives a crash."""
        with self._connected() as link:
            link.executescript(_TABLES)
            with link:
                self._put(link, record)

    def read(self) -> AuditRecord | None:
        """The record; None where the audit was never accepted.

        Raises:
            InvalidInput: the database is damaged, or of another release.
        """
        if not self._database.is_file():
            return None
        try:
            with self._connected() as link:
                tables = link.execute("SELECT count(*) FROM sqlite_master WHERE name = 'audit'").fetchone()
                found = link.execute("SELECT record FROM audit").fetchone() if tables[0] else None
            return None if found is None else AuditRecord.model_validate_json(found[0])
        except (sqlite3.DatabaseError, ValidationError):
            raise InvalidInput(f"audit {self.folder.name}: its database cannot be read") from None

    def save(self, record: AuditRecord) -> None:
        """The record alone."""
        with self._connected() as link, link:
            self._put(link, record)

    def append(self, record: AuditRecord, rows: Sequence[Row]) -> None:
        """Rows of new lines together with the record that counts them."""
        with self._connected() as link, link:
            link.executemany("INSERT INTO rows VALUES (?, NULL, ?, ?, ?, ?, ?, ?, ?, ?)", map(_values, rows))
            self._put(link, record)

    def conclude(self, record: AuditRecord, verdicts: Verdicts | None) -> None:
        """The last record, the verdicts where there are any, and every row's rank."""
        with self._connected() as link, link:
            if verdicts is not None:
                link.executemany(
                    "UPDATE rows SET quality = ?, is_issue = ?, suggested = ? WHERE line = ?",
                    zip(
                        verdicts.quality.tolist(),
                        verdicts.is_issue.tolist(),
                        map(_json, verdicts.suggested),
                        verdicts.lines.tolist(),
                        strict=True,
                    ),
                )
            link.execute(_RANK)
            link.execute("CREATE UNIQUE INDEX IF NOT EXISTS by_rank ON rows (rank)")
            self._put(link, record)
        self.items.unlink(missing_ok=True)
        self.matrix.unlink(missing_ok=True)

    def page(self, after: int, count: int) -> list[Ranked]:
        """The rows of ranks `after` + 1 to `after` + `count`, of a concluded audit; fewer where they are very long."""
        found, size = list[Ranked](), 0
        with self._connected() as link:
            for row in link.execute(f"SELECT {_SHOWN} FROM rows WHERE rank > ? ORDER BY rank LIMIT ?", (after, count)):
                found.append(_ranked(row))
                size += len(row[_GIVEN]) + len(row[_FACTS])
                if size >= _PAGE_TEXT:
                    break
        return found

    def targets(self, width: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Lines (N,) of the rows that have a quality, and their given classes (N, width)."""
        lines, given = array("q"), bytearray()
        with self._connected() as link:
            for line, target in link.execute(
                "SELECT line, target FROM rows WHERE quality IS NOT NULL ORDER BY line"
            ):  # fmt: skip
                lines.append(line)
                given += target
        return np.asarray(lines, np.int64), np.frombuffer(bytes(given), np.int32).reshape(len(lines), width)

    def probabilities(self, count: int, outputs: int) -> NDArray[np.float32]:
        """(count, outputs) float32, the rows that have a quality, by line: a map of a new file, free to change."""
        with self._connected() as link, self.matrix.open("wb") as out:
            for (p,) in link.execute("SELECT p FROM rows WHERE quality IS NOT NULL ORDER BY line"):
                out.write(p)
        return np.memmap(self.matrix, np.float32, "r+", shape=(count, outputs))

    def facts(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """What /loss says, and is_issue, of the rows that have a quality, one after another, by line."""
        ask = "SELECT facts, is_issue FROM rows WHERE quality IS NOT NULL ORDER BY line"
        with self._connected() as link:
            for facts, issue in link.execute(ask):
                yield json.loads(facts), bool(issue)

    def scored(self) -> Iterator[list[tuple[NDArray[np.int32], bool, float | None, Any]]]:
        """Given classes, is_issue, loss and suggestion of the rows that have a quality, some at a time, by line."""
        ask = "SELECT target, is_issue, loss, suggested FROM rows WHERE quality IS NOT NULL ORDER BY line"
        with self._connected() as link:
            found = link.execute(ask)
            while some := found.fetchmany(_AT_ONCE):
                yield [
                    (np.frombuffer(target, np.int32), bool(issue), loss, _parsed(suggested))
                    for target, issue, loss, suggested in some
                ]

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=30.0)) as link:
            link.execute("PRAGMA journal_mode = WAL")
            link.execute("PRAGMA synchronous = FULL")
            link.execute("PRAGMA temp_store = MEMORY")
            yield link

    @staticmethod
    def _put(link: sqlite3.Connection, record: AuditRecord) -> None:
        link.execute("INSERT OR REPLACE INTO audit VALUES (0, ?)", (record.model_dump_json(),))


def _values(row: Row) -> tuple[Any, ...]:
    return (
        row.line,
        json.dumps(row.given),
        json.dumps(row.facts),
        row.quality,
        _json(row.suggested),
        row.is_issue,
        row.loss,
        None if row.target is None else row.target.tobytes(),
        None if row.p is None else row.p.tobytes(),
    )


def _ranked(found: Sequence[Any]) -> Ranked:
    rank, line, given, facts, quality, suggested, is_issue, loss = found
    row = Row(
        line=line,
        given=json.loads(given),
        facts=json.loads(facts),
        quality=quality,
        suggested=_parsed(suggested),
        is_issue=None if is_issue is None else bool(is_issue),
        loss=loss,
    )
    return Ranked(rank, row)


def _json(value: str | list[str] | None) -> str | None:
    return None if value is None else json.dumps(value)


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)
