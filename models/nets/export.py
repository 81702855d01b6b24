"""A trained net to an ONNX graph that takes decoded images: normalisation inside, checked against ONNX Runtime."""

import base64
import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import METADATA_KEY
from models.card import Golden, ImageInput, ModelCard
from models.errors import BundleError
from models.image import Pixels, encode_png

OPSET = 20
PARITY_LIMIT = 1e-4
_PARITY_BATCHES = (1, 3, 8)
_PARITY_IMAGES = 32
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class ServedNet(nn.Module):
    """A net behind its normalisation: what training evaluates and the bundle runs."""

    def __init__(self, net: nn.Module, spec: ImageInput) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("shift", torch.tensor(spec.mean).mul(255.0).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(spec.std).mul(255.0).reciprocal().view(1, 3, 1, 1), persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to float32 (N, 3, H, W), in the memory order channels last."""
        shift, scale = cast(Tensor, self.shift), cast(Tensor, self.scale)
        return (image.permute(0, 3, 1, 2).to(torch.float32) - shift) * scale

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3), 0-255, to logits float32 (N, K)."""
        # A flatten of channels-last memory would be exported as a Gather over strides.
        return cast(Tensor, self.net(self.normalize(image).contiguous()))


@dataclass(frozen=True)
class Export:
    """A checked graph and its card, whose `sha256` is set when both are written."""

    card: ModelCard
    graph: bytes


def export_net(net: nn.Module, facts: dict[str, Any], images: Pixels) -> Export:
    """Exports a net, checks the graph against it, and completes the card.

    Args:
        net: normalised float32 (N, 3, H, W) to logits (N, K); it is left as it is.
        facts: the fields of `ModelCard`, but for those that are found here (golden, parity_max_difference, sha256).
        images: (N, height, width, 3) uint8, N >= 1, real ones; the first is the golden one, 32 are compared.

    Returns:
        The graph: input `image` uint8 [N, height, width, 3], output `logits` float32 [N, K], opset 20, one file,
        with the card in `metadata_props`.

    Raises:
        BundleError: the graph's logits differ from the net's by more than 1e-4 of max(1, |logit|), or are not finite.
    """
    spec: ImageInput = facts["input"]
    plain = copy.deepcopy(net).cpu()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    served = ServedNet(plain, spec).eval().requires_grad_(False)
    sample = np.ascontiguousarray(images[np.arange(_PARITY_IMAGES) % len(images)])
    graph = _build_graph(served, sample[:2])
    session = _open_session(graph.SerializeToString())
    difference = _measure_parity(served, session, sample)
    if not difference <= PARITY_LIMIT:
        raise BundleError(f"ONNX Runtime's logits differ from torch's by {difference:.3g}; {PARITY_LIMIT:g} is allowed")
    golden = Golden(
        image_png=base64.b64encode(encode_png(sample[0])).decode(), logits=_run(session, sample[:1])[0].tolist()
    )
    card = ModelCard(**facts, golden=golden, parity_max_difference=difference)
    onnx.helper.set_model_props(graph, {METADATA_KEY: card.model_dump_json()})
    onnx.checker.check_model(graph)
    return Export(card, graph.SerializeToString())


def _build_graph(served: ServedNet, images: Pixels) -> onnx.ModelProto:
    with _quiet():
        program = torch.onnx.export(
            served,
            (torch.from_numpy(images),),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise BundleError("torch.onnx.export gave no graph")
    graph = program.model_proto
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return graph


def _open_session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, images: Pixels) -> NDArray[np.float32]:
    return np.asarray(session.run(["logits"], {"image": images})[0], np.float32)


def _measure_parity(served: ServedNet, session: onnxruntime.InferenceSession, images: Pixels) -> float:
    """Largest difference relative to max(1, |logit|), over all images in batches of each size."""
    worst = 0.0
    for size in _PARITY_BATCHES:
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            with torch.inference_mode():
                want = served(torch.from_numpy(batch)).numpy()
            with np.errstate(invalid="ignore"):
                gap = np.abs(_run(session, batch) - want) / np.maximum(1.0, np.abs(want))
            worst = max(worst, float(gap.max())) if np.isfinite(gap).all() else float("inf")
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch.onnx says of missing torchvision and of its own deprecations, nowhere else."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
