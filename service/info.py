"""Probes, metrics, the list of models, and the page at /."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from models.card import Estimate, ImageInput, LossSpec
from service.metrics import CONTENT_TYPE
from service.openapi import PROBLEMS
from service.served import Served
from service.state import ServiceState

router = APIRouter()
WEB = Path(__file__).parent / "web"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:",
    "cache-control": "no-cache",
}


class Live(BaseModel):
    """The process answers."""

    live: bool
    version: str


class Ready(BaseModel):
    """Every model is loaded and warm, its batcher works, and it runs where it was asked to."""

    ready: bool
    providers: dict[str, str]


class DetectorInfo(BaseModel):
    """What a detector answers where a request says nothing."""

    score_threshold: float
    iou_threshold: float
    max_detections: int


class ModelInfo(BaseModel):
    """What a served model is."""

    name: str
    version: str
    task: str
    labels: list[str]
    input: ImageInput
    loss: LossSpec
    detector: DetectorInfo | None = None
    temperature: float
    metrics: dict[str, Estimate]
    created: str
    sha256: str | None
    device_asked: str
    provider: str
    provider_reason: str


@router.get("/healthz", operation_id="healthz", summary="Is the process alive?", response_model=Live)
async def healthz() -> dict[str, Any]:
    """Never touches a model."""
    return {"live": True, "version": version("focalserve")}


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Will requests be answered?",
    response_model=Ready,
    responses={503: PROBLEMS[503]},
)
async def readyz(request: Request) -> dict[str, Any]:
    """503 with the reason while it is loading, stopping, refused, or on another device than asked for."""
    state: ServiceState = request.app.state.service
    state.check_ready()
    return {"ready": True, "providers": {one.name: one.device.provider for one in state.catalog.all()}}


@router.get("/metrics", operation_id="metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Text exposition format."""
    state: ServiceState = request.app.state.service
    return Response(await state.exposition(), media_type=CONTENT_TYPE)


@router.get("/models", operation_id="models", summary="What is served", response_model=list[ModelInfo])
async def models(request: Request) -> list[dict[str, Any]]:
    """The facts of every model's card that a client needs, and the device it runs on."""
    state: ServiceState = request.app.state.service
    return [_info(served) for served in state.catalog.all() if served.card is not None]


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page for people."""
    return FileResponse(WEB / "index.html", headers=_PAGE_HEADERS)


@router.get("/web/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """Its style and script."""
    if name not in ("page.css", "page.js"):
        raise HTTPException(404)
    return FileResponse(WEB / name, headers=_PAGE_HEADERS)


def _info(served: Served) -> dict[str, Any]:
    card, device = served.card, served.device
    if card is None:
        return {}
    return {
        **card.model_dump(
            include={"name", "version", "task", "labels", "input", "loss", "metrics", "created", "sha256"}
        ),
        "detector": card.detector and card.detector.model_dump(include=set(DetectorInfo.model_fields)),
        "temperature": card.calibration.temperature,
        "device_asked": device.asked,
        "provider": device.provider,
        "provider_reason": device.reason,
    }
