"""/audits: whole data sets of given labels, scored in the background."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.audit_answers import AuditInfo, AuditList, AuditPage, info_of
from service.audit_file import AuditFile
from service.audit_forms import FORMS, Form, page_of
from service.audit_kinds import KINDS
from service.audit_records import AuditRecord, Ranked
from service.audit_spool import Encoding, SpoolWriter, inspect
from service.audits import Audits
from service.bodies import validate_strings
from service.errors import NotReady, RequestTimeout, UnsupportedMedia
from service.exchange import Call
from service.openapi import AUDIT_BODY, AUDIT_RESULTS, NOT_ENDED, PROBLEMS
from service.schemas import AuditOptions
from service.state import ServiceState

router = APIRouter(prefix="/audits", tags=["Audits"])
Answer = TypeVar("Answer")
AuditId = Annotated[str, Path(description="as POST /audits answered it", max_length=64)]
_TYPES = ("", "application/x-ndjson", "application/ndjson", "application/jsonl", "application/octet-stream")
_CURLS_OWN = "application/x-www-form-urlencoded"
_WRITE_FROM = 1 << 20
_STREAMED_AT_ONCE = 1000
_REFUSALS = (400, 408, 413, 415, 422, 429, 503)


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: PROBLEMS[code] for code in codes}


@router.post(
    "",
    operation_id="create_audit",
    summary="Audit the labels, or the boxes, of a data set",
    status_code=202,
    response_model=AuditInfo,
    responses=_problems(404, *_REFUSALS),
    openapi_extra=AUDIT_BODY,
)
async def create(request: Request, response: Response) -> AuditInfo:
    """Takes NDJSON, one item of /loss a line, of any length; answers once all of it is on disk, and scores it after.

    A line that is no item is an error of its own among the results. gzip bodies are taken. Of a detector an item is a
    picture with its boxes, and a row is a picture.
    """
    state: ServiceState = request.app.state.service
    call = Call(request.scope, request.receive)
    asked = validate_strings(AuditOptions, call.query())
    state.check_ready()
    served, card = state.with_card(asked.model)
    kind = KINDS[card.task]
    kind.check(card, asked)
    encoding = _encoding(call)
    audit, file = await asyncio.to_thread(state.audits.store.begin)
    try:
        size = await _spool(state, request, file, encoding, audit)
        found = await asyncio.to_thread(inspect, file.items)
        room = kind.room(card, asked, found)
        record = AuditRecord(
            id=audit,
            name=asked.name,
            model=served.name,
            version=served.version,
            sha256=card.sha256,
            task=card.task,
            activation=asked.activation,
            outputs=room.outputs,
            row_bytes=room.row_bytes,
            created=time.time(),
            size=size,
            items=found.items,
        )
        await state.audits.submit(record)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(state.audits.store.drop, audit))
        raise
    response.headers["location"] = f"/audits/{audit}"
    return info_of(record, None)


@router.get("", operation_id="list_audits", summary="All audits", response_model=AuditList, responses=_problems(503))
async def everything(request: Request) -> AuditList:
    """Those that are kept, the oldest first."""
    audits = await _audits(request)
    return AuditList(audits=[info_of(record, audits.rate(record)) for record in audits.store.all()])


@router.get(
    "/{audit}",
    operation_id="audit",
    summary="How far an audit is, and what came of it",
    response_model=AuditInfo,
    responses=_problems(404, 503),
)
async def one(request: Request, audit: AuditId) -> AuditInfo:
    """State, counts, speed and, once it is done, the summary."""
    audits = await _audits(request)
    record = audits.store.get(audit)
    return info_of(record, audits.rate(record))


@router.get(
    "/{audit}/results",
    operation_id="audit_results",
    summary="The rows of an audit, the worst label first",
    response_model=AuditPage,
    response_model_exclude_unset=True,
    responses={200: AUDIT_RESULTS, **NOT_ENDED, **_problems(404, 422, 503)},
)
async def results(
    request: Request,
    audit: AuditId,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=0, le=2**53, description="`next` of the page before")] = 0,
) -> Response:
    """A page of an audit that has ended; all of its rows with `Accept: application/x-ndjson` or `text/csv`."""
    audits = await _audits(request)
    accepted = request.headers.get("accept", "")
    for media_type, make in FORMS.items():
        if media_type in accepted:
            first = await audits.page(audit, after, _STREAMED_AT_ONCE)
            form = make(KINDS[audits.store.get(audit).task])
            return StreamingResponse(_stream(audits, audit, first, form), media_type=media_type)
    found = await audits.page(audit, after, page_size)
    body = await asyncio.to_thread(page_of, found, audits.store.get(audit).done)
    return Response(body, media_type="application/json")


@router.delete(
    "/{audit}",
    operation_id="delete_audit",
    summary="Cancel an audit, or remove one that has ended",
    response_model=AuditInfo,
    responses={204: {"description": "Removed."}, **_problems(404, 503)},
)
async def delete(request: Request, audit: AuditId) -> Any:
    """One that waits or runs is stopped and keeps what it has scored; one that has ended is removed."""
    audits = await _audits(request)
    if audits.store.get(audit).is_final:
        await audits.remove(audit)
        return Response(status_code=204)
    return info_of(await audits.cancel(audit), None)


async def _audits(request: Request) -> Audits:
    state: ServiceState = request.app.state.service
    await state.audits.ready()
    return state.audits


def _encoding(call: Call) -> Encoding:
    declared = call.header(b"content-type").split(";", 1)[0].strip().lower()
    if declared not in (*_TYPES, _CURLS_OWN):
        raise UnsupportedMedia("send application/x-ndjson: one JSON object a line")
    encodings: dict[str, Encoding] = {"": "identity", "identity": "identity", "gzip": "gzip"}
    encoding = encodings.get(call.header(b"content-encoding").strip().lower())
    if encoding is not None:
        return encoding
    raise UnsupportedMedia("the content encoding is not accepted; gzip and identity are")


async def _spool(state: ServiceState, request: Request, file: AuditFile, encoding: Encoding, audit: str) -> int:
    """Writes the body to disk as it comes; its bytes, decompressed."""
    store, settings = state.audits.store, state.settings
    writer = await asyncio.to_thread(SpoolWriter, file.items, settings.audit_max_bytes, encoding)
    waiting = bytearray()

    def write(data: bytes) -> None:
        writer.write(data)
        store.claim(audit, writer.size)

    try:
        stream = request.stream()
        while (chunk := await _within(anext(stream, None), settings.body_timeout)) is not None:
            waiting += chunk
            if len(waiting) >= _WRITE_FROM:
                await asyncio.to_thread(write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(write, bytes(waiting))
        await asyncio.to_thread(writer.finish)
    except OSError as error:
        raise NotReady(f"the items cannot be written ({(error.strerror or 'unknown').lower()})") from None
    finally:
        writer.close()
    return writer.size


async def _within(part: Awaitable[Answer], seconds: float) -> Answer:
    """The next bytes of a body: a large one may take long, but none may stand still."""
    try:
        async with asyncio.timeout(seconds):
            return await part
    except TimeoutError:
        raise RequestTimeout(f"nothing of the body has arrived for {seconds:g} s") from None


async def _stream(audits: Audits, audit: str, rows: list[Ranked], form: Form) -> AsyncIterator[bytes]:
    if form.head:
        yield form.head
    while rows:
        yield await asyncio.to_thread(form.body, rows)
        rows = await audits.page(audit, rows[-1].rank, _STREAMED_AT_ONCE)
