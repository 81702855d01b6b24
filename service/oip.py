"""The Open Inference Protocol v2 over REST: everything under /v2. Errors are objects with a string `error`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as package_version
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from models.errors import BundleError, FocalserveError
from service import loss_model
from service.batcher import Timed
from service.bodies import parse_json
from service.errors import BodyTooLarge, InvalidRequest, NotFound, NotOffered
from service.exchange import Call, Reply
from service.infer import LENGTH_HEADER, InferRequest, check_inputs, decode_pictures, read_request, write_reply
from service.runtime import TensorSpec
from service.served import Block, Served
from service.state import ServiceState
from service.tensors import as_text

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "statistics"]
_PROBABILITIES = "probabilities"
_LONG_BODY = 64 * 1024
_NOT_OFFERED = {"trace", "logging", "systemsharedmemory", "cudasharedmemory"}
Answer = Callable[[ServiceState, Call], Awaitable[Reply]]


async def answer(state: ServiceState, call: Call) -> Reply:
    """Any request under /v2."""
    parts = [part for part in call.path.split("/")[2:]]
    match call.method, parts:
        case "GET", [] | [""]:
            return _route(call, "/v2", _json(_server()))
        case "GET", ["health", "live"]:
            return _route(call, "/v2/health/live", _json({"live": True, "ready": True}))
        case "GET", ["health", "ready"]:
            state.check_ready()
            return _route(call, "/v2/health/ready", _json({"live": True, "ready": True}))
        case "GET", ["models", "stats"]:
            return _route(
                call, "/v2/models/stats", _json({"model_stats": [_stats(one) for one in state.catalog.all()]})
            )
        case _, ["models", name, "versions", version, *rest]:
            return await _model(state, call, name, version, rest)
        case _, ["models", name, *rest]:
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
        return _route(call, template + "/stats", _json({"model_stats": [_stats(served)] if served else []}))
    metadata = _loss_metadata() if served is None else _metadata(state, served)
    return _route(call, template, _json(metadata))


async def _infer(state: ServiceState, call: Call, name: str, version: str | None) -> Reply:
    start = perf_counter()
    body = await call.body(state.settings.max_body_bytes, state.settings.body_timeout)
    if name == loss_model.NAME:
        _check_loss_version(version)
        return await asyncio.to_thread(_loss_reply, call, body)
    served = state.served(name, version)
    ok = False
    served.batcher.holders += 1
    try:
        request = await _read(call, body, served)
        outputs, labels, timed = await (_run_pictures if served.card else _run_tensors)(state, served, call, request)
        reply = write_reply(request, served.name, served.version, outputs, labels)
        ok = True
    finally:
        served.batcher.holders -= 1
        served.observer.statistics.request(ok, perf_counter() - start)
    queued, ran = max(one.queued for one in timed) * 1e3, max(one.ran for one in timed) * 1e3
    total = (perf_counter() - start) * 1e3
    reply.headers.append((b"server-timing", b"queue;dur=%.3f, infer;dur=%.3f, total;dur=%.3f" % (queued, ran, total)))
    return reply


async def _read(call: Call, body: bytes, served: Served) -> InferRequest:
    """The request; one with long JSON in a thread, so that probes are answered meanwhile."""
    if len(body) < _LONG_BODY or call.header(LENGTH_HEADER):
        return read_request(call, body, served.runtime.inputs)
    return await asyncio.to_thread(read_request, call, body, served.runtime.inputs)


def _loss_reply(call: Call, body: bytes) -> Reply:
    request = read_request(call, body, loss_model.INPUTS)
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
    if tensor is not None and tensor.dtype == np.object_:
        if tensor.ndim not in (1, 2) or (tensor.ndim == 2 and tensor.shape[1] != 1) or len(request.inputs) != 1:
            raise InvalidRequest("input image: encoded pictures are BYTES of shape [N]")
        _check_count(tensor.size, state)
        results = await state.run(served, card, decode_pictures(tensor, request.as_json), call)
    else:
        check_inputs(request.inputs, served.runtime.inputs)
        _check_count(len(request.inputs["image"]), state)
        results = await served.batcher.submit_all(list(request.inputs["image"]), lambda: call.gone)
    timed = _all_good(results)
    for one in timed:
        served.observer.predicted(card.labels[one.result.batch.order[one.result.row, 0]])
    logits = np.stack([one.result.logits for one in timed])
    p = np.stack([one.result.batch.p[one.result.row] for one in timed])
    return (
        {"logits": logits, _PROBABILITIES: p.astype(np.float32)},
        {"logits": card.labels, _PROBABILITIES: card.labels},
        timed,
    )


async def _run_tensors(state: ServiceState, served: Served, call: Call, request: InferRequest) -> Outcome:
    """A graph without a card: tensors as they are; batched with others where the first side is free."""
    specs = served.runtime.inputs
    check_inputs(request.inputs, specs)
    arrays = tuple(
        as_text(request.inputs[spec.name])
        if spec.datatype == "BYTES"
        else np.require(request.inputs[spec.name], requirements="A")  # after JSON of any length they lie anywhere
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
    body = await call.body(state.settings.max_body_bytes, state.settings.body_timeout)
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
    body = await call.body(state.settings.max_body_bytes, state.settings.body_timeout)
    asked = parse_json(body) if body.strip() else {}
    parameters = asked.get("parameters") or {} if isinstance(asked, dict) else None
    if not isinstance(parameters, dict):
        raise InvalidRequest("the body should be empty or an object, with an object of parameters")
    if any(key == "config" or key.startswith("file:") for key in parameters):
        raise NotOffered("a model is loaded as its folder is; config and files in the request are not offered")
    try:
        await (state.load(name) if what == "load" else state.catalog.unload(name))
    except BundleError as error:
        raise InvalidRequest(f"refused, and what was served before is served on: {error}") from None
    return Reply(b"")


def _server() -> dict[str, Any]:
    return {"name": "focalserve", "version": package_version("focalserve"), "extensions": EXTENSIONS}


def _metadata(state: ServiceState, served: Served) -> dict[str, Any]:
    outputs = [_tensor(spec) for spec in served.runtime.outputs]
    found: dict[str, Any] = {
        "name": served.name,
        "versions": sorted(state.catalog.entry(served.name).versions),
        "platform": "onnx_onnxv1",
        "inputs": [_tensor(spec) for spec in served.runtime.inputs],
        "outputs": outputs,
    }
    card = served.card
    if card is not None:
        outputs.append({"name": _PROBABILITIES, "datatype": "FP32", "shape": [-1, len(card.labels)]})
        found["properties"] = {
            "task": card.task,
            "labels": to_json(card.labels).decode(),
            "preprocessing": card.input.model_dump_json(),
            "loss": card.loss.model_dump_json(),
            "calibration": card.calibration.model_dump_json(),
            "encoded_images": "input image also takes BYTES [N], each one JPEG, PNG, WebP or BMP file",
            "sha256": card.sha256 or "",
        }
    return found


def _loss_metadata() -> dict[str, Any]:
    return {
        "name": loss_model.NAME,
        "versions": [loss_model.VERSION],
        "platform": "focalserve",
        "inputs": [_tensor(spec) for spec in loss_model.INPUTS],
        "outputs": [_tensor(spec) for spec in loss_model.OUTPUTS],
        "properties": {"parameters": loss_model.PARAMETERS, "gradient": "only when it is asked for by name"},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _stats(served: Served) -> dict[str, Any]:
    sums = served.observer.statistics
    done = {"count": sums.succeeded, "ns": sums.total_ns}
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": 0,
        "inference_count": sums.images,
        "execution_count": sums.runs,
        "inference_stats": {
            "success": done,
            "fail": {"count": sums.failed, "ns": 0},
            "queue": {"count": sums.images, "ns": sums.queue_ns},
            "compute_input": {"count": sums.runs, "ns": 0},
            "compute_infer": {"count": sums.runs, "ns": sums.infer_ns},
            "compute_output": {"count": sums.runs, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": count, "ns": 0},
                "compute_infer": {"count": count, "ns": ns},
                "compute_output": {"count": count, "ns": 0},
            }
            for size, (count, ns) in sorted(sums.by_size.items())
        ],
    }


def _json(document: Any) -> Reply:
    return Reply(to_json(document, inf_nan_mode="null"))


def _route(call: Call, template: str, reply: Reply) -> Reply:
    call.scope["focalserve.route"] = template
    return reply
