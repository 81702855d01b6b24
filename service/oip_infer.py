"""POST /v2/models/NAME/infer: a bundle's pictures, a graph's tensors, and the loss."""

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import FocalserveError
from service import loss_model
from service.batch import Timed
from service.begun import Begun, Outcome, result_of
from service.box_infer import run_detector
from service.described import PROBABILITIES
from service.errors import BodyTooLarge, InvalidRequest, NotFound
from service.exchange import Buffer, Call, Reply
from service.infer import check_inputs, pictures_of, write_reply
from service.infer_request import LENGTH_HEADER, InferRequest, Tensors, read_request
from service.items import Block, Picture
from service.many import submit_all
from service.served import Served
from service.state import ServiceState
from service.tensors import as_text
from service.timing import tell

_LONG_BODY = 64 * 1024
Outputs = tuple[dict[str, NDArray[Any]], Mapping[str, Sequence[str]]]
"""By name, and the class names of those that have them."""


async def infer(state: ServiceState, call: Call, name: str, version: str | None) -> Reply:
    """The answer of a model, or of the loss."""
    start = perf_counter()
    receive = call.binary if call.header(LENGTH_HEADER) else call.body
    body = await receive(state.settings.max_body_bytes, state.settings.body_timeout)
    if name == loss_model.NAME:
        check_loss_version(version)
        return await _loss(state, call, body, start)
    served = state.served(name, version)
    ok = False
    served.batcher.holders += 1
    try:
        request = await _read(call, body, served, state.settings.max_json_bytes)
        outputs, labels, timed = await _run(state, served, call, request)
        encoding = perf_counter()
        reply = write_reply(request, served.name, served.version, outputs, labels)
        ok = True
    finally:
        served.batcher.holders -= 1
        served.observer.sums.request(ok, perf_counter() - start)
    return tell(call, reply, start, encoding, timed, served.observer)


def begin_infer(state: ServiceState, call: Call, body: bytes, name: str, version: str | None) -> Begun | None:
    """`infer` of one picture, or of tensors, for a model that runs in the event loop."""
    start = perf_counter()
    served = None if name == loss_model.NAME else state.served(name, version)
    if served is None or not served.quick or len(body) >= _LONG_BODY:
        return None
    sums = served.observer.sums
    try:
        request = read_request(call, body, served.runtime.inputs, state.settings.max_json_bytes)
        item = _item(state, served, request)
    except Exception:
        sums.request(False, perf_counter() - start)
        raise
    if item is None:
        return None

    def finish(outcome: Outcome) -> Reply:
        ok = False
        try:
            timed = result_of(outcome)
            outputs, labels = _outputs(served, [timed])
            encoding = perf_counter()
            reply = write_reply(request, served.name, served.version, outputs, labels)
            ok = True
        finally:
            sums.request(ok, perf_counter() - start)
        return tell(call, reply, start, encoding, [timed], served.observer)

    return Begun(served.batcher, item, finish)


def check_loss_version(version: str | None) -> None:
    """Refuses a version that the loss has not."""
    if version not in (None, loss_model.VERSION):
        raise NotFound(f"model {loss_model.NAME} has no such version; it has {loss_model.VERSION}")


async def _read(call: Call, body: Buffer, served: Served, most: int) -> InferRequest:
    """The request; one with long JSON in a thread, so that probes are answered meanwhile."""
    if len(body) < _LONG_BODY or call.header(LENGTH_HEADER):
        return read_request(call, body, served.runtime.inputs, most)
    return await asyncio.to_thread(read_request, call, body, served.runtime.inputs, most)


async def _loss(state: ServiceState, call: Call, body: Buffer, start: float) -> Reply:
    """The answer of the loss, worked out in a thread."""
    sums, ok = state.loss[-1], False
    try:
        reply, rows, seconds = await asyncio.to_thread(_loss_reply, call, body, state.settings.max_json_bytes)
        sums.run(rows, seconds)
        ok = True
    finally:
        sums.request(ok, perf_counter() - start)
    return reply


def _loss_reply(call: Call, body: Buffer, most: int) -> tuple[Reply, int, float]:
    """The answer, its rows, and the seconds that their loss took."""
    request = read_request(call, body, loss_model.INPUTS, most)
    start = perf_counter()
    outputs, more = loss_model.compute(request)
    took = perf_counter() - start
    reply = write_reply(request, loss_model.NAME, loss_model.VERSION, outputs, {}, more)
    return reply, len(request.inputs["logits"]), took


async def _run(
    state: ServiceState, served: Served, call: Call, request: InferRequest
) -> tuple[dict[str, NDArray[Any]], Mapping[str, Sequence[str]], list[Timed]]:
    if served.card is None:
        timed = [await served.batcher.submit(_block(served, request.inputs), lambda: call.gone)]
        return *_outputs(served, timed), timed
    tensor = _images(state, served, request)
    if served.card.detector is not None:
        outputs, results = await run_detector(state, served, served.card, call, request)
        timed = _all_good(results)
        for k in outputs.get("classes", ()):
            served.observer.predicted(served.card.labels[k])
        return outputs, {}, timed
    if tensor.dtype == np.object_:
        results = await state.images.predict(served, served.card, pictures_of(tensor, request.as_json), call)
    else:
        results = await submit_all(served.batcher, list(tensor), lambda: call.gone)
    timed = _all_good(results)
    return *_outputs(served, timed), timed


def _item(state: ServiceState, served: Served, request: InferRequest) -> Block | Picture | None:
    """What the batcher takes; None where that is several items, or takes more than the event loop has time for."""
    if served.card is None:
        return _block(served, request.inputs)
    tensor = _images(state, served, request)
    if served.card.detector is not None or len(tensor) != 1:
        return None
    if tensor.dtype != np.object_:
        picture: NDArray[np.uint8] = tensor[0]
        return picture
    (image,) = pictures_of(tensor, request.as_json)
    try:
        return state.images.decoder.at_once(image, served.card, served.observer)
    except FocalserveError as error:
        raise _of_image(0, error) from None


def _outputs(served: Served, timed: Sequence[Timed]) -> Outputs:
    """A graph's outputs of a block, or a classifier's of its pictures."""
    if served.card is None:
        return dict(zip([spec.name for spec in served.runtime.outputs], timed[0].result, strict=True)), {}
    card, answers = served.card, [one.result.answer for one in timed]
    for one in answers:
        served.observer.predicted(card.labels[one.found.order[0]])
    logits = np.stack([one.logits for one in answers])
    p = np.array([one.found.p for one in answers], np.float32)
    return {"logits": logits, PROBABILITIES: p}, {"logits": card.labels, PROBABILITIES: card.labels}


def _images(state: ServiceState, served: Served, request: InferRequest) -> NDArray[Any]:
    """A bundle's input: pixels as the graph takes them, or encoded pictures as BYTES [N]."""
    tensor = request.inputs.get("image")
    encoded = tensor is not None and tensor.dtype == np.object_
    if (
        tensor is not None
        and encoded
        and (tensor.shape[1:] not in ((), (1,)) or not tensor.ndim or len(request.inputs) != 1)
    ):
        raise InvalidRequest("input image: encoded pictures are BYTES of shape [N]")
    if tensor is not None and tensor.ndim and len(tensor) > state.settings.max_images:
        raise BodyTooLarge(f"{len(tensor)} images in one request; {state.settings.max_images} are allowed")
    if not encoded:
        check_inputs(request.inputs, served.runtime.inputs)
    return request.inputs["image"]


def _block(served: Served, tensors: Tensors) -> Block:
    """A graph without a card: tensors as they are; batched with others where the first side is free."""
    runtime = served.runtime
    check_inputs(tensors, runtime.inputs, runtime.optional)
    if runtime.operators.empty_ends and not all(one.size for one in tensors.values()):
        raise InvalidRequest("a tensor is empty, which the model does not take, by its LSTM or GRU")
    needed = [spec.name for spec in runtime.inputs]
    arrays = tuple([_native(tensors[name]) for name in needed])
    rows = len(arrays[0]) if runtime.batchable else 1
    if runtime.batchable and any([len(array) != rows for array in arrays]):
        raise InvalidRequest("the inputs differ in their first side")
    if len(tensors) == len(needed):
        return Block(arrays, rows)
    return Block(arrays, rows, {name: _native(one) for name, one in tensors.items() if name not in needed})


def _native(tensor: NDArray[Any]) -> NDArray[Any]:
    """As ONNX Runtime takes it: BYTES as text, all else aligned, as binary tensors after JSON of any length are not."""
    if tensor.dtype == np.object_:
        return as_text(tensor)
    return tensor if tensor.flags.aligned else tensor.copy()


def _all_good(results: Sequence[Timed | Exception]) -> list[Timed]:
    if not results:
        raise InvalidRequest("there are no images in the request")
    for i, result in enumerate(results):
        if isinstance(result, FocalserveError):
            raise _of_image(i, result)
        if isinstance(result, Exception):
            raise result
    return [result for result in results if isinstance(result, Timed)]


def _of_image(index: int, error: FocalserveError) -> FocalserveError:
    return type(error)(f"image {index}: {error}")
