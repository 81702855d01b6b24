"""Audits in the background: one at a time, part by part, with the model that they began with."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, TypeVarTuple

from models.card import ModelCard
from models.errors import BundleError, DeviceUnavailable, FocalserveError
from service.audit_kinds import KINDS, Judge
from service.audit_records import FIRST_ERRORS, AuditRecord, Item, LineError, Ranked, State, detail_of
from service.audit_spool import Part, parse_item, read_part
from service.audit_store import AuditStore
from service.batch import Timed
from service.decoding import Encoded
from service.detector import Wish
from service.errors import Conflict, InvalidRequest, NotReady
from service.image_runner import ImageRunner
from service.served import Served

log = logging.getLogger("focalserve")
Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")
_LOOK_AGAIN = 0.2
_SWEEP = 60.0


class Models(Protocol):
    """Where models are asked (the service's state)."""

    def with_card(self, name: str | None, version: str | None = None) -> tuple[Served, ModelCard]:
        """The model of that name."""
        ...

    @property
    def images(self) -> ImageRunner:
        """Where their pictures are run."""
        ...


class _Cancelled(Exception):
    """Somebody asked to stop the audit."""


@dataclass(frozen=True)
class _Pace:
    """When work on an audit began in this process, and how many items were done already."""

    audit: str
    since: float
    done: int


class Audits:
    """Runs audits and answers for them; started and stopped with the app.

    Args:
        store: where they are kept.
        models: where the models are asked.
    """

    def __init__(self, store: AuditStore, models: Models) -> None:
        self.store = store
        self._models = models
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audits")
        self._new = asyncio.Event()
        self._cancelled: set[str] = set()
        self._current: str | None = None
        self._settled = asyncio.Event()
        self._pace: _Pace | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Goes on with audits that an earlier process left, and waits for new ones."""
        self._task = asyncio.create_task(self._work(), name="audits")

    async def stop(self) -> None:
        """Ends the work; what is finished is kept, the next process goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)
        self.store.close()

    async def ready(self) -> None:
        """Returns once the audits of earlier processes are known.

        Raises:
            NotReady: another process has their folder.
        """
        await asyncio.to_thread(self.store.open)

    async def submit(self, record: AuditRecord) -> AuditRecord:
        """Takes an audit whose items are all there.

        Raises:
            Overloaded: it would take too much room.
        """
        await asyncio.to_thread(self.store.add, record)
        self._new.set()
        return record

    async def cancel(self, audit: str) -> AuditRecord:
        """Stops an audit that has not ended, keeping its rows so far; the record then.

        Raises:
            NotFound: there is none of that id.
        """
        record = self.store.get(audit)
        if not record.is_final and audit not in self._cancelled:
            self._cancelled.add(audit)
            if audit != self._current:
                await self._end(audit, "cancelled", None)
                self._cancelled.discard(audit)
                self._settled.set()
        while not self.store.get(audit).is_final:
            self._settled.clear()
            await self._settled.wait()
        return self.store.get(audit)

    async def remove(self, audit: str) -> None:
        """Removes an audit that has ended."""
        await asyncio.to_thread(self.store.drop, audit)

    async def page(self, audit: str, after: int, count: int) -> list[Ranked]:
        """Rows by rank, those behind `after`.

        Raises:
            NotFound: there is none of that id.
            Conflict: it has not ended, so that ranks would change.
        """
        record = self.store.get(audit)
        if not record.is_final:
            raise Conflict(f"the audit is {record.state}; its rows have ranks when it has ended")
        return await asyncio.to_thread(self.store.page, audit, after, count)

    def rate(self, record: AuditRecord) -> float | None:
        """Items per second since this process works on the audit; None where it does not."""
        pace = self._pace
        if pace is None or pace.audit != record.id or record.is_final or record.done == pace.done:
            return None
        return (record.done - pace.done) / (time.monotonic() - pace.since)

    async def _work(self) -> None:
        try:
            await self.ready()
        except FocalserveError as error:
            log.warning("audits: %s", error)
        except Exception:
            log.exception("audits of an earlier process cannot be read")
        while True:
            await self._threaded(self.store.expire, time.time())
            if (record := self._next()) is not None:
                await self._run(record)
                continue
            self._new.clear()
            try:
                async with asyncio.timeout(_SWEEP):
                    await self._new.wait()
            except TimeoutError:
                pass

    def _next(self) -> AuditRecord | None:
        """The audit that was running when the process ended, else the oldest that waits."""
        left = [one for one in self.store.all() if not one.is_final and one.id not in self._cancelled]
        return min(left, key=lambda one: one.state != "running", default=None)

    async def _run(self, record: AuditRecord) -> None:
        self._current = record.id
        self._pace = _Pace(record.id, time.monotonic(), record.done)
        try:
            await self._score_all(record)
        except _Cancelled:
            await self._end(record.id, "cancelled", None)
        except FocalserveError as error:
            await self._end(record.id, "failed", str(error))
        except Exception:
            log.exception("audit %s failed", record.id)
            await self._end(record.id, "failed", "an unexpected failure; it has been logged")
        finally:
            self._current = None
            self._cancelled.discard(record.id)
            self._settled.set()

    async def _score_all(self, record: AuditRecord) -> None:
        file = self.store.file(record.id)
        _, card = await self._model(record)
        judge = KINDS[record.task].judge(card, record)
        record = record.model_copy(update={"state": "running"})
        await self._threaded(self.store.save, record)
        while (
            part := await self._threaded(read_part, file.items, record.offset, record.line, judge.pictures)
        ).lines:  # fmt: skip
            record = await self._score(record, judge, part)
        record, verdicts = await self._threaded(judge.conclude, record, file)
        await self._threaded(self.store.end, record, "done", verdicts)
        log.info("audit %s is done: %d items, %d of them bad", record.id, record.done, record.errors)

    async def _score(self, record: AuditRecord, judge: Judge, part: Part) -> AuditRecord:
        parsed = await self._threaded(_parse, part)
        pictures = [None if isinstance(item.sent, Exception) else judge.picture(item.sent) for item in parsed]
        served, results = await self._ask(record, [one for one in pictures if one is not None], judge.wish)
        answers = iter(results)
        items = [
            item if picture is None else replace(item, answer=_answer(next(answers)))
            for item, picture in zip(parsed, pictures, strict=True)
        ]
        scored = await self._threaded(judge.score, items, served.observer.labelled)
        wrong = [row for row in scored.rows if "error" in row.facts]
        told = [LineError(line=row.line, detail=detail_of(row)) for row in wrong]
        record = record.model_copy(
            update={
                "offset": part.offset,
                "line": part.line,
                "done": record.done + len(parsed),
                "errors": record.errors + len(wrong),
                "first_errors": [*record.first_errors, *told][:FIRST_ERRORS],
                "methods": sorted({*record.methods, *scored.methods}),
            }
        )
        await self._threaded(self.store.append, record, scored.rows)
        return record

    async def _ask(
        self, record: AuditRecord, images: Sequence[Encoded], wish: Wish | None
    ) -> tuple[Served, list[Timed | Exception]]:
        """The model's rows for images; where it is exchanged meanwhile, those of its successor if it is the same."""
        while True:
            served, card = await self._model(record)
            try:
                results = await self._models.images.run_later(
                    served, card, images, lambda: record.id in self._cancelled, wish
                )
            except NotReady:
                await asyncio.sleep(_LOOK_AGAIN)
                continue
            if record.id in self._cancelled:
                raise _Cancelled
            if not any(isinstance(result, NotReady) for result in results):
                return served, results

    async def _model(self, record: AuditRecord) -> tuple[Served, ModelCard]:
        while record.id not in self._cancelled:
            try:
                served, card = self._models.with_card(record.model, record.version)
            except (NotReady, DeviceUnavailable, BundleError):
                await asyncio.sleep(_LOOK_AGAIN)
                continue
            if card.sha256 != record.sha256:
                raise InvalidRequest(f"model {record.model} {record.version} is another one now; send the audit again")
            return served, card
        raise _Cancelled

    async def _end(self, audit: str, state: State, reason: str | None) -> None:
        record = self.store.get(audit).model_copy(update={"reason": reason})
        try:
            await asyncio.to_thread(self.store.end, record, state)
        except Exception:
            log.exception("audit %s cannot be written any more", audit)
            self.store.mark_failed(record)

    async def _threaded(self, work: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _parse(part: Part) -> list[Item]:
    return [Item(line.number, parse_item(line)) for line in part.lines]


def _answer(result: Timed | Exception) -> Any:
    return result if isinstance(result, Exception) else result.result.answer
