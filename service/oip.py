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
from service.errors import InvalidRequest, MethodNotAllowed, NotFound, NotOffered
from service.exchange import Call, Reply
from service.oip_infer import begin_infer, check_loss_version, infer
from service.served import Served
from service.state import ServiceState
from service.sums import CountedModel

_CONTROL_BYTES = 64 * 1024
_NOT_OFFERED = {"trace", "logging", "systemsharedmemory", "cudasharedmemory"}
Answer = Callable[[ServiceState, Call], Awaitable[Reply]]


async def answer(state: ServiceState, call: Call) -> Reply:
    """Any request under /v2."""
    match call.path.split("/")[2:]:
        case [] | [""]:
            _route(call, "GET", "/v2")
            return _json(server_document())
        case ["health", "live"]:
            _route(call, "GET", "/v2/health/live")
            return _json({"live": True, "ready": state.ready})
        case ["health", "ready"]:
            _route(call, "GET", "/v2/health/ready")
            state.check_ready()
            return _json({"live": True, "ready": True})
        case ["models", "stats"]:
            _route(call, "GET", "/v2/models/stats")
            return await _statistics(state, [*map(_sums_of, state.catalog.all()), state.loss])
        case ["models", name, "versions", version, *rest] if name and version:
            return await _model(state, call, name, version, rest)
        case ["models", name, *rest] if name:
            return await _model(state, call, name, None, rest)
        case ["repository", "index"]:
            _route(call, "POST", "/v2/repository/index")
            return await _index(state, call)
        case ["repository", "models", name, "load" | "unload" as what]:
            _route(call, "POST", f"/v2/repository/models/{{model}}/{what}")
            return await _control(state, call, name, what)
        case [part, *_] if part in _NOT_OFFERED:
            raise NotOffered(f"{part} is not offered by this server")
    raise NotFound("there is no such path")


def begin(state: ServiceState, call: Call, body: bytes) -> Begun | None:
    """`answer` of a request to a model that runs in the event loop."""
    match call.method, call.path.split("/")[2:]:
        case "POST", ["models", name, "infer"] if name:
            version, route = None, "/v2/models/{model}/infer"
        case "POST", ["models", name, "versions", str(version), "infer"] if name and version:
            route = "/v2/models/{model}/versions/{version}/infer"
        case _:
            return None
    _route(call, "POST", route)
    return begin_infer(state, call, body, name, version)


async def _model(state: ServiceState, call: Call, name: str, version: str | None, rest: Sequence[str]) -> Reply:
    if rest and rest[0] in _NOT_OFFERED:
        raise NotOffered(f"{rest[0]} is not offered by this server")
    template = "/v2/models/{model}" + ("/versions/{version}" if version else "")
    if rest == ["infer"]:
        _route(call, "POST", template + "/infer")
        return await infer(state, call, name, version)
    if rest not in ([], ["ready"], ["stats"]):
        raise NotFound("there is no such path")
    _route(call, "GET", "/".join([template, *rest]))
    if name == loss_model.NAME:
        check_loss_version(version)
        return await _of_loss(state, rest)
    served = state.served(name, version)
    if rest == ["ready"]:
        return _json({"name": name, "ready": served.batcher.alive})
    if rest == ["stats"]:
        return await _statistics(state, [_sums_of(served)])
    versions = sorted(state.catalog.entry(served.name).versions, key=version_key)
    return _json(model_document(served, versions))


async def _of_loss(state: ServiceState, rest: Sequence[str]) -> Reply:
    """What is asked of a model, of the one that is part of the service."""
    if rest == ["ready"]:
        return _json({"name": loss_model.NAME, "ready": True})
    return await _statistics(state, [state.loss]) if rest == ["stats"] else _json(loss_document())


async def _index(state: ServiceState, call: Call) -> Reply:
    body = await call.body(_CONTROL_BYTES, state.settings.body_timeout)
    asked = parse_json(body) if body.strip() else {}
    only_ready = isinstance(asked, dict) and asked.get("ready") is True
    catalog = state.catalog
    ready = {(one.name, one.version) for one in catalog.all()} | {(loss_model.NAME, loss_model.VERSION)}
    on_disk = {(name, version) for name, versions in catalog.available().items() for version in versions}
    return _json(
        [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            if (name, version) in ready
            else {"name": name, "version": version, "state": "UNAVAILABLE", "reason": catalog.why_not(name, version)}
            for name, version in sorted(ready if only_ready else ready | on_disk)
        ]
    )


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


def _sums_of(served: Served) -> CountedModel:
    return served.name, served.version, served.observer.sums


async def _statistics(state: ServiceState, models: Sequence[CountedModel]) -> Reply:
    others = await state.others()
    found = []
    for name, version, sums in models:
        for other in others:
            sums = sums.plus(other.of_model(name, version))
        found.append(statistics_document(name, version, sums))
    return _json({"model_stats": found})


def _json(document: Any) -> Reply:
    return Reply(to_json(document, inf_nan_mode="null"))


def _route(call: Call, method: str, template: str) -> None:
    """What metrics and spans call the path, however it is answered; and the only method that it has."""
    call.scope["focalserve.route"] = template
    if call.method != method:
        raise MethodNotAllowed(method)
