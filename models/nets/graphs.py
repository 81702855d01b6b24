"""What every export shares: torch to ONNX, parity with ONNX Runtime, the card inside the graph."""

import base64
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle import METADATA_KEY
from models.card import ModelCard
from models.errors import BundleError
from models.fit import Pixels
from models.image import encode_png

OPSET = 20
PARITY_LIMIT = 1e-4
_PARITY_BATCHES = (1, 3, 8)
_PARITY_IMAGES = 32
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Export:
    """A checked graph and its card, whose `sha256` is set when both are written; a detector's also has a loss graph."""

    card: ModelCard
    graph: bytes
    loss_graph: bytes | None = None


def plain_copy(net: nn.Module) -> nn.Module:
    """A copy of a net on the CPU, in the memory order that exports well."""
    plain = copy.deepcopy(net).cpu()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain


def choose_sample(images: Pixels) -> Pixels:
    """The 32 images (32, H, W, 3) that a graph is compared on; fewer (N, H, W, 3) are repeated."""
    return np.ascontiguousarray(images[np.arange(_PARITY_IMAGES) % len(images)])


def to_graph(served: nn.Module, images: Pixels, outputs: Sequence[str]) -> onnx.ModelProto:
    """A module as a graph of opset 20 in one piece, its first axis dynamic.

    Args:
        served: uint8 (N, H, W, 3) to one tensor, or a tuple of them, with N first.
        images: two of them or more.
        outputs: names of the tensors.

    Raises:
        BundleError: there is no graph.
    """
    with _quiet():
        program = torch.onnx.export(
            served,
            (torch.from_numpy(images),),
            input_names=["image"],
            output_names=list(outputs),
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


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A quiet session on the CPU, of as many threads as torch has, which do not spin while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def parity_batches(images: Pixels) -> Iterator[Pixels]:
    """All images (N, H, W, 3) in batches of 1, then of 3, then of 8."""
    for size in _PARITY_BATCHES:
        yield from (images[start : start + size] for start in range(0, len(images), size))


def relative_gap(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """Largest difference relative to max(1, |wanted|); infinite where one is no number."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(got - want) / np.maximum(1.0, np.abs(want))
    return float(gap.max()) if np.isfinite(gap).all() else float("inf")


def as_png(pixels: Pixels) -> str:
    """An input (H, W, 3) as a golden image: PNG in base64."""
    return base64.b64encode(encode_png(pixels)).decode()


def seal(graph: onnx.ModelProto, card: ModelCard, loss_graph: bytes | None = None) -> Export:
    """Puts the card into the graph's `metadata_props` and checks the whole."""
    onnx.helper.set_model_props(graph, {METADATA_KEY: card.model_dump_json()})
    onnx.checker.check_model(graph)
    return Export(card, graph.SerializeToString(), loss_graph)


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
