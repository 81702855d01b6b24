"""/predict and /loss: read the body, decode, run, score, answer. Each caller's fault is told apart from ours."""

import asyncio
import contextlib
from collections.abc import Sequence
from time import perf_counter
from typing import Any, TypeVar

import orjson

from models.card import ModelCard
from models.errors import InvalidInput
from service.batch import Timed
from service.begun import Begun, Outcome
from service.bodies import (
    check_json_size,
    check_lengths,
    is_form,
    media_type,
    parse_json,
    validate,
    validate_strings,
)
from service.box_answers import detect_items
from service.box_routes import box_loss, wish_of
from service.decoding import Encoded
from service.errors import BodyTooLarge, InvalidRequest, MalformedRequest
from service.exchange import Call, Reply
from service.forms import FormFile
from service.incoming import receive_form
from service.items import Look, Picture
from service.loss_item import LossItem
from service.predictions import predict_items
from service.schemas import LossOptions, LossRequest, PredictOptions, PredictRequest
from service.scoring import Given, score_labels
from service.served import Served
from service.state import ServiceState
from service.timing import tell

Asked = TypeVar("Asked", PredictRequest, LossRequest)
_LONG_BODY = 64 * 1024
_SEPARATOR = "|"
Results = list[Timed | Exception]


async def predict(state: ServiceState, call: Call) -> Reply:
    """Classifies one image sent as it is, or many as multipart/form-data or JSON (base64)."""
    start = perf_counter()
    images, ids, options = await _read_predict(state, call)
    served, card = state.with_card(options.model)
    _check_count(len(images), state.settings.max_images, "images")
    wish = wish_of(card, options)
    results = await state.images.predict(served, card, images, call, wish)
    return _predicted(call, served, card, results, ids, options, start)


def begin_predict(state: ServiceState, call: Call, body: bytes) -> Begun | None:
    """`predict` of one image, sent as it is, that needs no thread, or none but the model's own."""
    start = perf_counter()
    content_type = call.header(b"content-type")
    if is_form(content_type) or media_type(content_type, body) != "image":
        return None
    options = _image_options(call)
    served, card = state.with_card(options.model)
    wish = wish_of(card, options)
    item: Picture | Look | None = None
    if served.decodes([body]):
        item = state.images.item(body, wish)
    elif served.quick and wish is None:
        item = state.images.decoder.at_once(body, card, served.observer)
    if item is None:
        return None

    def finish(outcome: Outcome) -> Reply:
        return _predicted(call, served, card, [outcome], [None], options, start)

    return Begun(served.batcher, item, finish)


def _predicted(
    call: Call,
    served: Served,
    card: ModelCard,
    results: Results,
    ids: Sequence[str | None],
    options: PredictOptions,
    start: float,
) -> Reply:
    """The answer of /predict."""
    _raise_alone(results)
    encoding = perf_counter()
    answers = [_bare(result) for result in results]
    if card.detector is None:
        items = predict_items(card, answers, ids, options.top_k)
    else:
        items = detect_items(card, answers, ids)
    for item in items:
        for one in (item,) if "label" in item else item.get("boxes", ()):
            served.observer.predicted(one["label"])
    reply = Reply(orjson.dumps({"model": {"name": card.name, "version": card.version}, "predictions": items}))
    return tell(call, reply, start, encoding, _timed(results), served.observer)


async def loss(state: ServiceState, call: Call) -> Reply:
    """Focal loss of the model's predictions against given labels: which are wrong, and what they should be."""
    start = perf_counter()
    if is_form(call.header(b"content-type")):
        form = await receive_form(state, call)
        labels = form.fields.pop("label", [])
        files, options = form.files, validate_strings(LossOptions, _single(form.fields) | call.query())
    else:
        body = await call.body(state.settings.max_body_bytes, state.settings.body_timeout)
        if media_type(call.header(b"content-type"), body) == "json":
            asked = await _document(state, call, body, LossRequest)
            served, card = state.with_card(asked.model)
            return await _answer_loss(state, call, served, card, asked.items(), asked, start)
        query: dict[str, Any] = call.query()
        labels = [query.pop("label")] if "label" in query else []
        files, options = [FormFile(None, body)], validate_strings(LossOptions, query)
    served, card = state.with_card(options.model)
    if len(labels) != len(files):
        boxes = "" if card.detector is None else "; a detector's is the JSON of the image's boxes"
        raise InvalidRequest(f"{len(files)} images need {len(files)} labels, {len(labels)} were given{boxes}")
    given = {text: _text_given(text, card) for text in set(labels)}
    items = [LossItem(name, *given[text], data) for (name, data), text in zip(files, labels, strict=True)]
    return await _answer_loss(state, call, served, card, items, options, start)


async def _read_predict(
    state: ServiceState, call: Call
) -> tuple[Sequence[Encoded], Sequence[str | None], PredictOptions]:
    if is_form(call.header(b"content-type")):
        form = await receive_form(state, call)
        options = validate_strings(PredictOptions, _single(form.fields) | call.query())
        return [file.data for file in form.files], [file.name for file in form.files], options
    body = await call.body(state.settings.max_body_bytes, state.settings.body_timeout)
    if media_type(call.header(b"content-type"), body) == "image":
        return [body], [None], _image_options(call)
    asked = await _document(state, call, body, PredictRequest)
    return [one.image for one in asked.inputs], [one.id for one in asked.inputs], asked


def _image_options(call: Call) -> PredictOptions:
    """What the query of an image that is sent as it is says."""
    query = call.query()
    return validate_strings(PredictOptions, query) if query else _DEFAULTS


async def _answer_loss(
    state: ServiceState,
    call: Call,
    served: Served,
    card: ModelCard,
    items: list[LossItem],
    asked: LossOptions,
    start: float,
) -> Reply:
    for i, item in enumerate(items) if asked.source is not None else ():
        if asked.source != item.source:
            raise InvalidRequest(f"inputs.{i}: has {item.source}, but `from` says {asked.source}")
    images = [item.image for item in items if item.image is not None]
    if images and asked.activation is not None:
        raise InvalidRequest("activation goes with logits or probabilities; for images the card knows it")
    if images:
        _check_count(len(images), state.settings.max_images, "images")
    _check_count(len(items), state.settings.max_rows, "rows")
    if card.detector is not None:
        return await box_loss(state, call, served, card, items, asked, start)
    if any(item.label is None for item in items):
        raise InvalidRequest(f"model {card.name} is a classifier; give labels, not boxes")
    results = await state.images.run(served, card, images, call) if images else []
    found = iter(results)
    given = [
        Given(item.row if item.image is None else _logits(next(found)), item.label, item.id, item.kind)
        for item in items
    ]
    _raise_alone([one.row for one in given])
    answer = await asyncio.to_thread(score_labels, card, given, asked, served.observer.labelled)
    encoding = perf_counter()
    reply = _json({"model": {"name": card.name, "version": card.version}, **answer})
    return tell(call, reply, start, encoding, _timed(results), served.observer)


_DEFAULTS = PredictOptions.model_validate({})


def _bare(result: Timed | Exception) -> Any:
    return result if isinstance(result, Exception) else result.result.answer


def _logits(result: Timed | Exception) -> Any:
    return result if isinstance(result, Exception) else result.result.answer.logits


def _timed(results: Results) -> list[Timed]:
    return [result for result in results if isinstance(result, Timed)]


def _json(payload: dict[str, Any]) -> Reply:
    return Reply(orjson.dumps(payload))


async def _document(state: ServiceState, call: Call, body: bytes, model: type[Asked]) -> Asked:
    """The JSON of a body; a long one in a thread, so that probes are answered meanwhile."""
    if call.query():
        raise InvalidRequest("the options of a JSON request go into its body, not into the query")
    settings = state.settings
    check_json_size(body, len(body), settings.max_json_bytes)
    most = settings.max_images if model is PredictRequest else max(settings.max_rows, settings.max_images)

    def read() -> Asked:
        document = parse_json(body)
        check_lengths(document, most)
        return validate(model, document)

    return read() if len(body) < _LONG_BODY else await asyncio.to_thread(read)


def _single(fields: dict[str, list[str]]) -> dict[str, Any]:
    repeated = [key for key, values in fields.items() if len(values) > 1]
    if repeated:
        raise InvalidRequest(f"{repeated[0][:64]}: is given more than once")
    return {key: values[0] for key, values in fields.items()}


def _check_count(count: int, most: int, what: str) -> None:
    if count == 0:
        raise InvalidRequest(f"there are no {what} in the request")
    if count > most:
        raise BodyTooLarge(f"{count} {what} in one request; {most} are allowed")


def _raise_alone(results: Sequence[Any]) -> None:
    """A request of one image fails with that image's own error."""
    if len(results) == 1 and isinstance(results[0], Exception):
        raise results[0]


def _text_given(text: str, card: ModelCard) -> tuple[Any, list[dict[str, Any]] | None]:
    """What a query or a form says of one image: a label, or for a detector its boxes, as JSON."""
    if card.detector is None:
        return _text_label(text, card), None
    with contextlib.suppress(MalformedRequest):
        boxes = parse_json(text.encode())
        if isinstance(boxes, list) and all(isinstance(one, dict) for one in boxes):
            return None, boxes
    raise InvalidRequest(
        f'label: model {card.name} is a detector; give boxes as JSON, [{{"box": [x1, y1, x2, y2], "label": ...}}]'
    )


def _text_label(text: str, card: ModelCard) -> Any:
    """A label as it comes in a query or a form: a name, an index, or names separated by `|`."""
    if text in card.labels:
        return text
    if card.task == "multilabel":
        return [name for name in text.split(_SEPARATOR) if name]
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise InvalidInput("label: the model has no label of that name")
