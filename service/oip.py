"""The Open Inference Protocol v2 over REST: everything under /v2. Errors are objects with a string `error`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from models.bundle import version_key
from models.errors import BundleError, FocalserveError
from service import loss_model
from service.batch import Timed
from service.bodies import parse_json
from service.box_infer import run_detector
from service.described import PROBABILITIES, loss_document, model_document, server_document, statistics_document
from service.errors import BodyTooLarge, InvalidRequest, NotFound, NotOffered
from service.exchange import Buffer, Call, Reply
from service.infer import check_inputs, pictures_of, write_reply
from service.infer_request import LENGTH_HEADER, InferRequest, read_request
from service.items import Block
from service.many import submit_all
from service.served import Served
from service.state import ServiceState
from service.tensors import as_text
from service.timing import tell

_LONG_BODY = 64 * 1024
_CONTROL_BYTES = 64 * 1024
_NOT_OFFERED = {"trace", "logging", "systemsharedmemory", "cudasharedmemory"}
Answer = Callable[[ServiceState, Call], Awaitable[Reply]]


async def answer(state: ServiceState, call: Call) -> Reply:
    """Any request under /v2."""
    parts = call.path.split("/")[2:]
    match call.method, parts:
        case "POST", ["models", name, "infer"] if name:  # first, since it is asked by far the most
            return await _model(state, call, name, None, ["infer"])
        case "GET", [] | [""]:
            return _route(call, "/v2", _json(server_document()))
        case "GET", ["health", "live"]:
            return _route(call, "/v2/health/live", _json({"live": True, "ready": True}))
        case "GET", ["health", "ready"]:
            state.check_ready()
            return _route(call, "/v2/health/ready", _json({"live": True, "ready": True}))
        case "GET", ["models", "stats"]:
            return _route(call, "/v2/models/stats", await _statistics(state, state.catalog.all()))
        case _, ["models", name, "versions", version, *rest] if name and version:
            return await _model(state, call, name, version, rest)
        case _, ["models", name, *rest] if name:
            return await _model(state, call, name, None, rest)
        case "POST", ["repository", "index"]:
            return _route(call, "/v2/repository/index", await _index(state, call))
        case "POST", ["repository", "models", name, "load" | "unload" as what]:
            return _route(call, f"/v2/repository/models/{{model}}/{what}", await _control(state, call, name, what))
    if parts and parts[0] in _NOT_OFFERED:
        raise NotOffered(f"{parts[0]} is not offered by this server")
    raise NotFound("there is no such path, or it has no such method")


async def _model(state: ServiceState, call: Call, name: str, version: str | None, rest: Sequence[str]) -> Reply:
    if rest and rest[0] in _NOT_OFFERED:
        raise NotOffered(f"{rest[0]} is not offered by this server")
    template = "/v2/models/{model}" + ("/versions/{version}" if version else "")
    if call.method == "POST" and rest == ["infer"]:
        return _route(call, template + "/infer", await _infer(state, call, name, version))
    if call.method != "GET" or rest not in ([], ["ready"], ["stats"]):
        raise NotFound("there is no such path, or it has no such method")
    served = None if name == loss_model.NAME else state.served(name, version)
    if served is None:
        _check_loss_version(version)
    if rest == ["ready"]:
        ready = served is None or served.batcher.alive
        return _route(call, template + "/ready", _json({"name": name, "ready": ready}))
    if rest == ["stats"]:
        return _route(call, template + "/stats", await _statistics(state, [served] if served else []))
    if served is None:
        return _route(call, template, _json(loss_document()))
    versions = sorted(state.catalog.entry(served.name).versions, key=version_key)
    return _route(call, template, _json(model_document(served, versions)))


async def _infer(state: ServiceState, call: Call, name: str, version: str | None) -> Reply:
    start, most = perf_counter(), state.settings.max_json_bytes
    receive = call.binary if call.header(LENGTH_HEADER) else call.body
    body = await receive(state.settings.max_body_bytes, state.settings.body_timeout)
    if name == loss_model.NAME:
        _check_loss_version(version)
        return await asyncio.to_thread(_loss_reply, call, body, most)
    served = state.served(name, version)
    ok = False
    served.batcher.holders += 1
    try:
        request = await _read(call, body, served, most)
        outputs, labels, timed = await (_run_pictures if served.card else _run_tensors)(state, served, call, request)
        encoding = perf_counter()
        reply = write_reply(request, served.name, served.version, outputs, labels)
        ok = True
    finally:
        served.batcher.holders -= 1
        served.observer.sums.request(ok, perf_counter() - start)
    return tell(call, reply, start, encoding, timed, served.observer)


async def _read(call: Call, body: Buffer, served: Served, most: int) -> InferRequest:
    """The request; one with long JSON in a thread, so that probes are answered meanwhile."""
    if len(body) < _LONG_BODY or call.header(LENGTH_HEADER):
        return read_request(call, body, served.runtime.inputs, most)
    return await asyncio.to_thread(read_request, call, body, served.runtime.inputs, most)


def _loss_reply(call: Call, body: Buffer, most: int) -> Reply:
    request = read_request(call, body, loss_model.INPUTS, most)
    outputs, more = loss_model.compute(request)
    return write_reply(request, loss_model.NAME, loss_model.VERSION, outputs, {}, more)


def _check_loss_version(version: str | None) -> None:
    if version not in (None, loss_model.VERSION):
        raise NotFound(f"model {loss_model.NAME} has no such version; it has {loss_model.VERSION}")


Outcome = tuple[dict[str, NDArray[Any]], dict[str, Sequence[str]], list[Timed]]


async def _run_pictures(state: ServiceState, served: Served, call: Call, request: InferRequest) -> Outcome:
    """A bundle: pixels as the graph takes them, or encoded pictures as BYTES [N]."""
    card = served.card
    if card is None:
        raise NotFound("the model has no card")
    tensor = request.inputs.get("image")
    encoded = tensor is not None and tensor.dtype == np.object_
    if encoded:
        _check_encoded(request)
    _check_count(0 if tensor is None or tensor.ndim == 0 else len(tensor), state)
    if card.detector is not None:
        outputs, results = await run_detector(state, served, card, call, request)
        timed = _all_good(results)
        for k in outputs.get("classes", ()):
            served.observer.predicted(card.labels[k])
        return outputs, {}, timed
    if tensor is not None and encoded:
        results = await state.run(served, card, pictures_of(tensor, request.as_json), call)
    else:
        check_inputs(request.inputs, served.runtime.inputs)
        results = await submit_all(served.batcher, list(request.inputs["image"]), lambda: call.gone)
    timed = _all_good(results)
    for one in timed:
        served.observer.predicted(card.labels[one.result.answer.found.order[0]])
    logits = np.stack([one.result.answer.logits for one in timed])
    p = np.array([one.result.answer.found.p for one in timed], np.float32)
    return (
        {"logits": logits, PROBABILITIES: p},
        {"logits": card.labels, PROBABILITIES: card.labels},
        timed,
    )


def _check_encoded(request: InferRequest) -> None:
    tensor = request.inputs["image"]
    if tensor.ndim not in (1, 2) or (tensor.ndim == 2 and tensor.shape[1] != 1) or len(request.inputs) != 1:
        raise InvalidRequest("input image: encoded pictures are BYTES of shape [N]")


async def _run_tensors(state: ServiceState, served: Served, call: Call, request: InferRequest) -> Outcome:
    """A graph without a card: tensors as they are; batched with others where the first side is free."""
    specs = served.runtime.inputs
    check_inputs(request.inputs, specs)
    arrays = tuple(
        as_text(request.inputs[spec.name]) if spec.datatype == "BYTES" else _aligned(request.inputs[spec.name])
        for spec in specs
    )
    rows = 1
    if served.runtime.batchable:
        rows = len(arrays[0])
        if any(len(array) != rows for array in arrays):
            raise InvalidRequest("the inputs differ in their first side")
        if rows == 0:
            raise InvalidRequest("there are no rows in the request")
    timed = await served.batcher.submit(Block(arrays, rows), lambda: call.gone)
    named = zip((spec.name for spec in served.runtime.outputs), timed.result, strict=True)
    return dict(named), {}, [timed]


def _aligned(tensor: NDArray[Any]) -> NDArray[Any]:
    """After JSON of any length the binary tensors lie anywhere."""
    return tensor if tensor.flags.aligned else tensor.copy()


def _check_count(count: int, state: ServiceState) -> None:
    if count > state.settings.max_images:
        raise BodyTooLarge(f"{count} images in one request; {state.settings.max_images} are allowed")


def _all_good(results: Sequence[Timed | Exception]) -> list[Timed]:
    if not results:
        raise InvalidRequest("there are no images in the request")
    for i, result in enumerate(results):
        if isinstance(result, FocalserveError):
            raise type(result)(f"image {i}: {result}")
        if isinstance(result, Exception):
            raise result
    return [result for result in results if isinstance(result, Timed)]


async def _index(state: ServiceState, call: Call) -> Reply:
    body = await call.body(_CONTROL_BYTES, state.settings.body_timeout)
    asked = parse_json(body) if body.strip() else {}
    only_ready = isinstance(asked, dict) and asked.get("ready") is True
    loaded = {(one.name, one.version) for one in state.catalog.all()}
    on_disk = {(name, version) for name, versions in state.catalog.available().items() for version in versions}
    rows = [
        {"name": name, "version": version, "state": "READY" if (name, version) in loaded else "UNAVAILABLE",
         "reason": "" if (name, version) in loaded else "not loaded"}
        for name, version in sorted(loaded | on_disk)
        if not only_ready or (name, version) in loaded
    ]  # fmt: skip
    return _json(rows)


async def _control(state: ServiceState, call: Call, name: str, what: str) -> Reply:
    if not state.settings.model_control:
        raise NotOffered("loading and unloading is switched off (FOCALSERVE_MODEL_CONTROL)")
    body = await call.body(_CONTROL_BYTES, state.settings.body_timeout)
    asked = parse_json(body) if body.strip() else {}
    parameters = asked.get("parameters") or {} if isinstance(asked, dict) else None
    if not isinstance(parameters, dict):
        raise InvalidRequest("the body should be empty or an object, with an object of parameters")
    if any(key == "config" or key.startswith("file:") for key in parameters):
        raise NotOffered("a model is loaded as its folder is; config and files in the request are not offered")
    try:
        await (state.load(name) if what == "load" else state.unload(name))
    except BundleError as error:
        raise InvalidRequest(f"refused, and what was served before is served on: {error}") from None
    return Reply(b"")


async def _statistics(state: ServiceState, models: Sequence[Served]) -> Reply:
    others = await state.others()
    found = []
    for served in models:
        sums = served.observer.sums
        for other in others:
            sums = sums.plus(other.of_model(served.name, served.version))
        found.append(statistics_document(served, sums))
    return _json({"model_stats": found})


def _json(document: Any) -> Reply:
    return Reply(to_json(document, inf_nan_mode="null"))


def _route(call: Call, template: str, reply: Reply) -> Reply:
    call.scope["focalserve.route"] = template
    return reply
