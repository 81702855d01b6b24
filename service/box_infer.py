"""POST /v2/models/NAME/infer where the model is a detector: the detections of all images in one list."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.card import ModelCard, describe_validation
from service.batch import Timed
from service.box_routes import wish_of
from service.detector import RAW, Wish
from service.errors import InvalidRequest
from service.exchange import Call
from service.infer import check_inputs, pictures_of
from service.infer_request import InferRequest
from service.items import Look
from service.many import submit_all
from service.schemas import PredictOptions
from service.served import Served
from service.state import ServiceState

_RAW = ("cls_logits", "box_deltas")
_OPTIONS = ("score_threshold", "iou_threshold", "max_detections")


async def run_detector(
    state: ServiceState, served: Served, card: ModelCard, call: Call, request: InferRequest
) -> tuple[dict[str, NDArray[Any]], list[Timed | Exception]]:
    """The outputs, and what the batcher said of each image.

    `boxes` are in pixels of the original where encoded pictures came (BYTES [N]), else of the input; `image_index` is
    the image's place in the request. The raw outputs are there only when they are asked for by name.

    Raises:
        InvalidRequest: inputs or parameters that do not fit.
    """
    wish = wish_of(card, _options(request.parameters)) or RAW
    asked = {one.name for one in request.wanted or ()}
    outputs: dict[str, NDArray[Any]] = {}
    results: list[Timed | Exception] = []
    if not asked or asked - set(_RAW):
        results = await _run(state, served, card, call, request, wish)
        found = [one.result.answer.detections for one in results if isinstance(one, Timed)]
        counts = [len(one.scores) for one in found]
        outputs = {
            "boxes": np.concatenate([one.xyxy for one in found] or [np.zeros((0, 4))]).astype(np.float32),
            "scores": np.concatenate([one.scores for one in found] or [np.zeros(0)]).astype(np.float32),
            "classes": np.concatenate([one.labels for one in found] or [np.zeros(0, np.int64)]),
            "image_index": np.repeat(np.arange(len(found)), counts),
        }
    if asked & set(_RAW):
        results = await _run(state, served, card, call, request, RAW)
        raw = [one.result.answer for one in results if isinstance(one, Timed)]
        if raw:
            every = np.arange(raw[0].cls_logits.shape[0])
            outputs["cls_logits"] = np.stack([one.cls_logits.rows(every) for one in raw])
            outputs["box_deltas"] = np.stack([one.box_deltas for one in raw])
    return outputs, results


async def _run(
    state: ServiceState, served: Served, card: ModelCard, call: Call, request: InferRequest, wish: Wish
) -> list[Timed | Exception]:
    tensor = request.inputs.get("image")
    if tensor is not None and tensor.dtype == np.object_:
        return await state.images.run(served, card, pictures_of(tensor, request.as_json), call, wish)
    check_inputs(request.inputs, served.runtime.inputs)
    looks: Sequence[Look] = [Look(image, wish) for image in request.inputs["image"]]
    return await submit_all(served.batcher, looks, lambda: call.gone)


def _options(parameters: Mapping[str, Any]) -> PredictOptions:
    try:
        return PredictOptions.model_validate({name: parameters[name] for name in _OPTIONS if name in parameters})
    except ValidationError as error:
        raise InvalidRequest(f"parameters: {describe_validation(error)}") from None
