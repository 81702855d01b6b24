"""The hot routes as FastAPI knows them: for OpenAPI, and for an app that is mounted where `Front` does not see them."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service import oip, routes
from service.answers import BoxLossResponse, LossResponse, PredictResponse
from service.exchange import Call, Reply
from service.openapi import INFER_BODY, LOSS_BODY, OIP_ERRORS, PREDICT_BODY, PROBLEMS
from service.state import ServiceState

router = APIRouter()
Model = Annotated[str, Path(description="name of the model")]
Version = Annotated[str, Path(description="version, or a label such as stable or canary")]


@router.post(
    "/predict",
    operation_id="predict",
    summary="Classify images, or detect objects in them",
    response_model=None,
    responses={200: {"model": PredictResponse}, **PROBLEMS},
    openapi_extra=PREDICT_BODY,
)
async def predict(request: Request) -> Response:
    """Classes, or a detector's boxes, of one image sent as it is, or of many as multipart/form-data or JSON (base64).

    With several images a bad one has its own `error`; the others are answered.
    """
    return _response(await routes.predict(_state(request), _call(request)))


@router.post(
    "/loss",
    operation_id="loss",
    summary="Score given labels",
    response_model=None,
    responses={200: {"model": LossResponse | BoxLossResponse}, **PROBLEMS},
    openapi_extra=LOSS_BODY,
)
async def loss(request: Request) -> Response:
    """Focal loss of the model's predictions against given labels: which labels are wrong, and what they should be.

    Items hold an image, logits or probabilities. One image may also be sent as it is with `?label=`, and many as
    multipart/form-data with one `label` field per file. A detector takes `boxes` instead of a label (JSON text in a
    form), and answers per box what is wrong with it, and per image what nobody drew.
    """
    return _response(await routes.loss(_state(request), _call(request)))


@router.post(
    "/v2/models/{model}/infer",
    operation_id="infer",
    summary="Tensors in, tensors out",
    response_model=None,
    responses=OIP_ERRORS,
    openapi_extra=INFER_BODY,
    tags=["Open Inference Protocol"],
)
async def infer(request: Request, model: Model) -> Response:
    """The Open Inference Protocol v2: JSON and binary tensors both ways, raw bodies, BYTES images.

    The model `focal_loss` takes tensors `logits` and `labels` with the parameters gamma, alpha and mode.
    """
    return _response(await oip.answer(_state(request), _call(request)))


@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    operation_id="infer_version",
    summary="Tensors in, tensors out, of one version",
    response_model=None,
    responses=OIP_ERRORS,
    openapi_extra=INFER_BODY,
    tags=["Open Inference Protocol"],
)
async def infer_version(request: Request, model: Model, version: Version) -> Response:
    """As without a version, which asks the one labelled stable, or the newest."""
    return _response(await oip.answer(_state(request), _call(request)))


@router.get(
    "/v2",
    operation_id="server_metadata",
    summary="The server",
    response_model=None,
    tags=["Open Inference Protocol"],
)
@router.get(
    "/v2/health/live",
    operation_id="server_live",
    summary="Is the process alive?",
    response_model=None,
    tags=["Open Inference Protocol"],
)
@router.get(
    "/v2/health/ready",
    operation_id="server_ready",
    summary="Will requests be answered?",
    response_model=None,
    responses=OIP_ERRORS,
    tags=["Open Inference Protocol"],
)
@router.get(
    "/v2/models/stats",
    operation_id="statistics",
    summary="Counts and times of every model",
    response_model=None,
    tags=["Open Inference Protocol"],
)
@router.post(
    "/v2/repository/index",
    operation_id="repository_index",
    summary="Models on disk and whether they are loaded",
    response_model=None,
    tags=["Open Inference Protocol"],
)
async def server(request: Request) -> Response:
    """The Open Inference Protocol v2."""
    return _response(await oip.answer(_state(request), _call(request)))


@router.get(
    "/v2/models/{model}",
    operation_id="model_metadata",
    summary="A model's inputs, outputs and properties",
    response_model=None,
    responses=OIP_ERRORS,
    tags=["Open Inference Protocol"],
)
@router.get(
    "/v2/models/{model}/ready",
    operation_id="model_ready",
    summary="Will the model answer?",
    response_model=None,
    responses=OIP_ERRORS,
    tags=["Open Inference Protocol"],
)
@router.post(
    "/v2/repository/models/{model}/load",
    operation_id="repository_load",
    summary="Load or reload a model; what served before answers until the new one is warm",
    response_model=None,
    responses=OIP_ERRORS,
    tags=["Open Inference Protocol"],
)
@router.post(
    "/v2/repository/models/{model}/unload",
    operation_id="repository_unload",
    summary="Unload a model; what it has accepted is still answered",
    response_model=None,
    responses=OIP_ERRORS,
    tags=["Open Inference Protocol"],
)
async def model(request: Request, model: Model) -> Response:
    """The Open Inference Protocol v2."""
    return _response(await oip.answer(_state(request), _call(request)))


def _state(request: Request) -> ServiceState:
    state: ServiceState = request.app.state.service
    return state


def _call(request: Request) -> Call:
    return Call(request.scope, request.receive)


def _response(reply: Reply) -> Response:
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers, reply.media_type.decode())
