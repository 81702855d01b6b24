"""All audits on disk: one folder each, below one that belongs to one process at a time. Bounded in number and bytes."""

import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from models.errors import InvalidInput
from service.audit_file import AuditFile
from service.audit_records import AuditRecord, Ranked, Row, State, Verdicts
from service.errors import NotFound, NotReady, Overloaded

log = logging.getLogger("focalserve")
_FOLDER = re.compile(r"[0-9a-f]{16}")


class AuditStore:
    """Where audits are kept. Its methods block; any thread may call them.

    Args:
        root: the folder; made when the first audit comes.
        most: audits kept at most.
        most_bytes: of all audits together.
        keep: seconds that an audit is kept after its end.
    """

    def __init__(self, root: Path | None, most: int, most_bytes: int, keep: float) -> None:
        self._root = root or Path(tempfile.gettempdir()) / f"focalserve-audits-{os.getuid()}"
        self._most = most
        self._most_bytes = most_bytes
        self._keep = keep
        self._records: dict[str, AuditRecord] = {}
        self._claims: dict[str, int] = {}
        self._lock = threading.RLock()
        self._held: TextIO | None = None

    def open(self) -> None:
        """Reads the audits that an earlier process left, where there are any.

        Raises:
            NotReady: another process has the folder.
        """
        with self._lock:
            if self._held is None and self._root.is_dir():
                self._held = self._locked()
                for folder in sorted(self._root.iterdir()):
                    if _FOLDER.fullmatch(folder.name):
                        self._take_over(folder)

    def close(self) -> None:
        """Lets another process have the folder."""
        with self._lock:
            if self._held is not None:
                self._held.close()
                self._held = None

    def all(self) -> list[AuditRecord]:
        """Every audit, the oldest first."""
        return sorted(self._records.values(), key=lambda record: (record.created, record.id))

    def get(self, audit: str) -> AuditRecord:
        """One audit.

        Raises:
            NotFound: there is none of that id.
        """
        record = self._records.get(audit)
        if record is None:
            raise NotFound("there is no audit of that id; GET /audits lists them")
        return record

    def file(self, audit: str) -> AuditFile:
        """An audit's folder."""
        return AuditFile(self._root / audit)

    def begin(self) -> tuple[str, AuditFile]:
        """The id and folder of an audit that is being sent; to be added or dropped.

        Raises:
            Overloaded: there are as many as may be kept.
            NotReady: the folder cannot be had.
        """
        with self._lock:
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.open()
                if len(self._claims) >= self._most:
                    raise Overloaded(f"{self._most} audits are kept already; DELETE one that is no longer needed")
                audit = secrets.token_hex(8)
                (self._root / audit).mkdir(mode=0o700)
            except OSError as error:
                raise NotReady(f"the folder of the audits cannot be written ({_reason(error)})") from None
            self._claims[audit] = 0
            return audit, self.file(audit)

    def claim(self, audit: str, size: int) -> None:
        """Sets aside `size` bytes for an audit.

        Raises:
            Overloaded: all audits together would take too much.
        """
        with self._lock:
            if sum(self._claims.values()) - self._claims[audit] + size > self._most_bytes:
                raise Overloaded(f"all audits may take {self._most_bytes} bytes; DELETE one that is no longer needed")
            self._claims[audit] = size

    def add(self, record: AuditRecord) -> None:
        """An audit whose items are all there.

        Raises:
            Overloaded: its rows would take too much.
        """
        self.claim(record.id, bytes_of(record))
        self.file(record.id).create(record)
        self._records[record.id] = record

    def drop(self, audit: str) -> None:
        """Removes an audit with all that is known of it."""
        with self._lock:
            self._records.pop(audit, None)
            shutil.rmtree(self._root / audit, ignore_errors=True)
            self._claims.pop(audit, None)

    def save(self, record: AuditRecord) -> None:
        """A record that has changed."""
        self.file(record.id).save(record)
        self._records[record.id] = record

    def append(self, record: AuditRecord, rows: Sequence[Row]) -> None:
        """Rows, and the record that counts them."""
        self.file(record.id).append(record, rows)
        self._records[record.id] = record

    def end(self, record: AuditRecord, state: State, verdicts: Verdicts | None = None) -> AuditRecord:
        """The record with its last state; its rows have ranks now, and its items are gone."""
        record = record.model_copy(update={"state": state, "finished": time.time()})
        self.file(record.id).conclude(record, verdicts)
        with self._lock:
            self._records[record.id] = record
            self._claims[record.id] = bytes_of(record)
        return record

    def mark_failed(self, record: AuditRecord) -> None:
        """Says that an audit has failed even where nothing can be written any more."""
        self._records[record.id] = record.model_copy(update={"state": "failed", "finished": time.time()})

    def expire(self, now: float) -> None:
        """Removes audits that ended longer ago than they are kept."""
        for record in self.all():
            if record.finished is not None and record.finished + self._keep <= now:
                self.drop(record.id)

    def page(self, audit: str, after: int, count: int) -> list[Ranked]:
        """Rows of a concluded audit by rank, those behind `after`; fewer than `count` where they are very long."""
        return self.file(audit).page(after, count)

    def _take_over(self, folder: Path) -> None:
        try:
            record = AuditFile(folder).read()
        except InvalidInput as error:
            log.warning("%s; it is left as it is", error)
            return
        if record is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._records[record.id] = record
        self._claims[record.id] = bytes_of(record)

    def _locked(self) -> TextIO:
        try:
            if self._root.stat().st_uid != os.getuid():
                raise NotReady("the folder of the audits belongs to another user; set FOCALSERVE_AUDIT_DIR")
            file = (self._root / "lock").open("a", encoding="utf-8")
        except OSError as error:
            raise NotReady(f"the folder of the audits cannot be written ({_reason(error)})") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise NotReady("another process has the folder of the audits; set FOCALSERVE_AUDIT_DIR") from None
        return file


def bytes_of(record: AuditRecord) -> int:
    """About what an audit takes on disk: its items until it has ended, then its rows alone."""
    rows = record.items * (record.row_bytes + 4 * record.outputs)
    return rows if record.is_final else record.size + rows + 4 * record.items * record.outputs


def _reason(error: OSError) -> str:
    return (error.strerror or "unknown").lower()
