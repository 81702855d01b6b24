"""The Open Inference Protocol v2 over REST: everything under /v2. Errors are objects with a string `error`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic_core import to_json

from models.bundle import version_key
from models.errors import BundleError
from service import loss_model
from service.begun import Begun
from service.bodies import parse_json
from service.described import loss_document, model_document, server_document, statistics_document
from service.errors import InvalidRequest, NotFound, NotOffered
from service.exchange import Call, Reply
from service.oip_infer import begin_infer, check_loss_version, infer
from service.served import Served
from service.state import ServiceState

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
            _route(call, "/v2")
            return _json(server_document())
        case "GET", ["health", "live"]:
            _route(call, "/v2/health/live")
            return _json({"live": True, "ready": True})
        case "GET", ["health", "ready"]:
            _route(call, "/v2/health/ready")
            state.check_ready()
            return _json({"live": True, "ready": True})
        case "GET", ["models", "stats"]:
            _route(call, "/v2/models/stats")
            return await _statistics(state, state.catalog.all())
        case _, ["models", name, "versions", version, *rest] if name and version:
            return await _model(state, call, name, version, rest)
        case _, ["models", name, *rest] if name:
            return await _model(state, call, name, None, rest)
        case "POST", ["repository", "index"]:
            _route(call, "/v2/repository/index")
            return await _index(state, call)
        case "POST", ["repository", "models", name, "load" | "unload" as what]:
            _route(call, f"/v2/repository/models/{{model}}/{what}")
            return await _control(state, call, name, what)
    if parts and parts[0] in _NOT_OFFERED:
        raise NotOffered(f"{parts[0]} is not offered by this server")
    raise NotFound("there is no such path, or it has no such method")


def begin(state: ServiceState, call: Call, body: bytes) -> Begun | None:
    """`answer` of a request to a model that runs in the event loop."""
    match call.method, call.path.split("/")[2:]:
        case "POST", ["models", name, "infer"] if name:
            version, route = None, "/v2/models/{model}/infer"
        case "POST", ["models", name, "versions", str(version), "infer"] if name and version:
            route = "/v2/models/{model}/versions/{version}/infer"
        case _:
            return None
    _route(call, route)
    return begin_infer(state, call, body, name, version)


async def _model(state: ServiceState, call: Call, name: str, version: str | None, rest: Sequence[str]) -> Reply:
    if rest and rest[0] in _NOT_OFFERED:
        raise NotOffered(f"{rest[0]} is not offered by this server")
    template = "/v2/models/{model}" + ("/versions/{version}" if version else "")
    if call.method == "POST" and rest == ["infer"]:
        _route(call, template + "/infer")
        return await infer(state, call, name, version)
    if call.method != "GET" or rest not in ([], ["ready"], ["stats"]):
        raise NotFound("there is no such path, or it has no such method")
    _route(call, "/".join([template, *rest]))
    served = None if name == loss_model.NAME else state.served(name, version)
    if served is None:
        check_loss_version(version)
    if rest == ["ready"]:
        ready = served is None or served.batcher.alive
        return _json({"name": name, "ready": ready})
    if rest == ["stats"]:
        return await _statistics(state, [served] if served else [])
    if served is None:
        return _json(loss_document())
    versions = sorted(state.catalog.entry(served.name).versions, key=version_key)
    return _json(model_document(served, versions))


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


def _route(call: Call, template: str) -> None:
    """What metrics and spans call the path, however it is answered."""
    call.scope["focalserve.route"] = template
