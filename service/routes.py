"""/predict and /loss: read the body, decode, run, score, answer. Each caller's fault is told apart from ours."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from models.card import ModelCard
from models.errors import InvalidInput
from service.answers import LossResponse, PredictResponse
from service.bodies import FormFile, media_type, parse_json, parse_multipart, read_body, validate, validate_strings
from service.catalog import Served
from service.errors import BodyTooLarge, InvalidRequest
from service.openapi import LOSS_BODY, PREDICT_BODY, PROBLEMS
from service.schemas import (
    LossInput,
    LossOptions,
    LossRequest,
    PredictOptions,
    PredictRequest,
)
from service.scoring import Given, predict_items, score_labels
from service.state import Encoded, ServiceState

router = APIRouter()
Answer = TypeVar("Answer")
Asked = TypeVar("Asked", PredictRequest, LossRequest)
_LONG_BODY = 64 * 1024
_SEPARATOR = "|"


@router.post(
    "/predict",
    operation_id="predict",
    summary="Classify images",
    response_model=None,
    responses={200: {"model": PredictResponse}, **PROBLEMS},
    openapi_extra=PREDICT_BODY,
)
async def predict(request: Request) -> Response:
    """Classifies one image sent as it is, or many as multipart/form-data or JSON (base64).

    With several images a bad one has its own `error`; the others are answered.
    """
    state: ServiceState = request.app.state.service
    body = await read_body(request, state.settings.max_body_bytes, state.settings.body_timeout)
    kind = media_type(request.headers, body)
    if kind == "json":
        asked = await _document(request, body, PredictRequest)
        options: PredictOptions = asked
        images: list[Encoded] = [one.image for one in asked.inputs]
        ids = [one.id for one in asked.inputs]
    elif kind == "multipart":
        form = await parse_multipart(request.headers, body, state.settings.max_images)
        options = validate_strings(PredictOptions, _single(form.fields) | _query(request))
        images, ids = _files(form.files)
    else:
        options = validate_strings(PredictOptions, _query(request))
        images, ids = [body], [None]
    served = state.served(options.model)
    _check_count(len(images), state.settings.max_images, "images")
    rows = await _unless_gone(request, state.logits(served, images))
    _raise_alone(rows)
    answers = predict_items(served.card, rows, ids, options.top_k)
    _count_predictions(state, served, answers)
    return _json({"model": _model(served), "predictions": answers})


@router.post(
    "/loss",
    operation_id="loss",
    summary="Score given labels",
    response_model=None,
    responses={200: {"model": LossResponse}, **PROBLEMS},
    openapi_extra=LOSS_BODY,
)
async def loss(request: Request) -> Response:
    """Focal loss of the model's predictions against given labels: which labels are wrong, and what they should be.

    Items hold an image, logits or probabilities. One image may also be sent as it is with `?label=`, and many as
    multipart/form-data with one `label` field per file.
    """
    state: ServiceState = request.app.state.service
    body = await read_body(request, state.settings.max_body_bytes, state.settings.body_timeout)
    kind = media_type(request.headers, body)
    if kind == "json":
        asked = await _document(request, body, LossRequest)
        served = state.served(asked.model)
        return await _answer_loss(request, state, served, asked.items(), asked)
    query = _query(request)
    if kind == "multipart":
        form = await parse_multipart(request.headers, body, state.settings.max_images)
        labels = form.fields.pop("label", [])
        files, options = form.files, validate_strings(LossOptions, _single(form.fields) | query)
    else:
        labels = request.query_params.getlist("label")
        query.pop("label", None)
        files, options = [FormFile(None, body)], validate_strings(LossOptions, query)
    served = state.served(options.model)
    if len(labels) != len(files):
        raise InvalidRequest(f"{len(files)} images need {len(files)} labels, {len(labels)} were given")
    items = [
        LossInput.model_construct(id=file.name, image=file.data, label=_text_label(text, served.card))
        for file, text in zip(files, labels, strict=True)
    ]
    return await _answer_loss(request, state, served, items, options)


async def _answer_loss(
    request: Request, state: ServiceState, served: Served, items: list[LossInput], asked: LossOptions
) -> Response:
    for i, item in enumerate(items):
        if asked.source not in (None, item.source):
            raise InvalidRequest(f"inputs.{i}: has {item.source}, but `from` says {asked.source}")
    images = [item.image for item in items if item.image is not None]
    if images and asked.activation is not None:
        raise InvalidRequest("activation goes with logits or probabilities; for images the card knows it")
    if images:
        _check_count(len(images), state.settings.max_images, "images")
    _check_count(len(items), state.settings.max_rows, "rows")
    found = iter(await _unless_gone(request, state.logits(served, images)) if images else [])
    given = [
        Given(next(found) if item.image is not None else item.row, item.label, item.id, item.kind) for item in items
    ]
    _raise_alone([one.row for one in given])
    answer = await asyncio.to_thread(score_labels, served.card, given, asked)
    return _json({"model": _model(served), **answer})


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The work's result, or the end of it as soon as the client has left."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        task.cancel()


def _json(payload: dict[str, Any]) -> Response:
    return Response(to_json(payload, inf_nan_mode="null"), media_type="application/json")


def _model(served: Served) -> dict[str, str]:
    return {"name": served.card.name, "version": served.card.version}


async def _document(request: Request, body: bytes, model: type[Asked]) -> Asked:
    """The JSON of a body; a long one in a thread, so that probes are answered meanwhile."""
    if request.query_params:
        raise InvalidRequest("the options of a JSON request go into its body, not into the query")
    if len(body) < _LONG_BODY:
        return validate(model, parse_json(body))
    return await asyncio.to_thread(lambda: validate(model, parse_json(body)))


def _query(request: Request) -> dict[str, Any]:
    return _single({key: request.query_params.getlist(key) for key in request.query_params})


def _single(fields: dict[str, list[str]]) -> dict[str, Any]:
    repeated = [key for key, values in fields.items() if len(values) > 1 and key != "label"]
    if repeated:
        raise InvalidRequest(f"{repeated[0][:64]}: is given more than once")
    return {key: values[0] for key, values in fields.items()}


def _files(files: list[FormFile]) -> tuple[list[Encoded], list[str | None]]:
    return [file.data for file in files], [file.name for file in files]


def _check_count(count: int, most: int, what: str) -> None:
    if count == 0:
        raise InvalidRequest(f"there are no {what} in the request")
    if count > most:
        raise BodyTooLarge(f"{count} {what} in one request; {most} are allowed")


def _raise_alone(rows: list[Any]) -> None:
    """A request of one image fails with that image's own error."""
    if len(rows) == 1 and isinstance(rows[0], Exception):
        raise rows[0]


def _text_label(text: str, card: ModelCard) -> Any:
    """A label as it comes in a query or a form: a name, an index, or names separated by `|`."""
    if text in card.labels:
        return text
    if card.task == "multilabel":
        return [name for name in text.split(_SEPARATOR) if name]
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise InvalidInput("label: the model has no label of that name")


def _count_predictions(state: ServiceState, served: Served, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        if "label" in answer:
            state.metrics.predictions.labels(served.card.name, answer["label"]).inc()
