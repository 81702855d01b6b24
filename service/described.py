"""What the Open Inference Protocol tells of the server and its models: metadata and statistics."""

from collections.abc import Sequence
from importlib.metadata import version as package_version
from typing import Any

from pydantic_core import to_json

from service import loss_model
from service.runtime import TensorSpec
from service.served import Served
from service.sums import ModelSums

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "statistics"]
PROBABILITIES = "probabilities"


def server_document() -> dict[str, Any]:
    """What the server is."""
    return {"name": "focalserve", "version": package_version("focalserve"), "extensions": EXTENSIONS}


def model_document(served: Served, versions: Sequence[str]) -> dict[str, Any]:
    """A model's metadata; with a card, all that a client needs to know stands in `properties`."""
    outputs = [_tensor(spec) for spec in served.runtime.outputs]
    found: dict[str, Any] = {
        "name": served.name,
        "versions": list(versions),
        "platform": "onnx_onnxv1",
        "inputs": [_tensor(spec) for spec in served.runtime.inputs],
        "outputs": outputs,
    }
    card = served.card
    if card is None and served.runtime.optional:
        optional = [_tensor(spec) for spec in served.runtime.optional]
        found["properties"] = {"optional_inputs": to_json(optional).decode()}
    if card is not None:
        if card.detector is None:
            outputs.append({"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(card.labels)]})
        found["properties"] = {
            "task": card.task,
            "labels": to_json(card.labels).decode(),
            "preprocessing": card.input.model_dump_json(),
            "loss": card.loss.model_dump_json(),
            "calibration": card.calibration.model_dump_json(),
            "encoded_images": "input image also takes BYTES [N], each one JPEG, PNG, WebP or BMP file",
            "sha256": card.sha256 or "",
        }
        if card.detector is not None:
            found["properties"] |= {
                "detector": card.detector.model_dump_json(exclude={"calibrator", "missing_calibrator", "confusion"}),
                "parameters": "score_threshold, iou_threshold, max_detections",
                "raw_outputs": "cls_logits and box_deltas only when they are asked for by name",
                "boxes": "x1, y1, x2, y2 in pixels of the original for BYTES, of the input for UINT8",
            }
    return found


def loss_document() -> dict[str, Any]:
    """The metadata of the model `focal_loss`."""
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


def statistics_document(name: str, version: str, sums: ModelSums) -> dict[str, Any]:
    """A model's counts and times since it was loaded."""
    return {
        "name": name,
        "version": version,
        "last_inference": sums.last_ms,
        "inference_count": sums.images,
        "execution_count": sums.runs,
        "inference_stats": {
            "success": {"count": sums.succeeded, "ns": sums.total_ns},
            "fail": {"count": sums.failed, "ns": sums.failed_ns},
            "queue": {"count": sums.images, "ns": sums.queue_ns},
            "compute_input": {"count": sums.runs, "ns": sums.input_ns},
            "compute_infer": {"count": sums.runs, "ns": sums.infer_ns},
            "compute_output": {"count": sums.runs, "ns": sums.output_ns},
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
