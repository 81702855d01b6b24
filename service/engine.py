"""One ONNX Runtime session and the truth about it. Usable without HTTP: `run(images) -> logits`."""

import ctypes
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.bundle import METADATA_KEY, Bundle
from models.card import ModelCard
from models.errors import BundleError, DeviceUnavailable, InvalidInput
from models.image import decode_image
from service.errors import InferenceFailed

Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# What another machine's arithmetic may differ by, relative to the largest logit: CUDA may use TF32.
_GOLDEN_TOLERANCE = {CPU: 1e-3, CUDA: 2e-2}


@dataclass(frozen=True)
class DeviceReport:
    """What runs the model.

    Attributes:
        asked: the device that the settings name.
        provider: the first provider of the session itself, never of the build.
        reason: why it is not CUDA, in words; empty where it is, or where the CPU was asked for.
    """

    asked: Device
    provider: str
    reason: str

    def __str__(self) -> str:
        return self.provider + (f" ({self.reason})" if self.reason else "")


class Engine:
    """A checked bundle in a session of ONNX Runtime.

    Args:
        bundle: what to run.
        device: `cuda` refuses to run on anything else; `auto` takes CUDA where it works.
        threads: intra-op threads on the CPU.

    Raises:
        BundleError: graph and card do not agree, or the golden pair is not met.
        DeviceUnavailable: cuda was asked for and the session has no CUDA provider.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self.card = bundle.card
        self._session, self.device = _open_session(bundle.graph, device, threads)
        _check_graph(self._session, self.card)
        _check_golden(self)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (N, K) float32 for images (N, height, width, 3) uint8.

        Raises:
            InferenceFailed: the runtime failed, or answered another number of rows.
        """
        try:
            logits = self._session.run(["logits"], {"image": images})[0]
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise InferenceFailed("the model's run failed") from error
        if logits.shape != (len(images), self.card.outputs):
            raise InferenceFailed(f"the model answered {logits.shape} for {len(images)} images")
        return np.asarray(logits, np.float32)

    def warm_up(self, sizes: tuple[int, ...]) -> float:
        """Runs blank batches of these sizes; milliseconds that the last took."""
        shape = (self.card.input.height, self.card.input.width, 3)
        took = 0.0
        for size in sizes:
            start = time.perf_counter()
            self.run(np.zeros((size, *shape), np.uint8))
            took = (time.perf_counter() - start) * 1e3
        return took


def cuda_driver_present() -> bool:
    """Whether this machine has an NVIDIA driver at all; a cheap test before any CUDA library is loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _open_session(graph: bytes, device: Device, threads: int) -> tuple[ort.InferenceSession, DeviceReport]:
    reason = _why_no_cuda() if device != "cpu" else ""
    if device == "cuda" and reason:
        raise DeviceUnavailable(f"the device cuda was asked for, but {reason}")
    wanted = [CUDA, CPU] if device != "cpu" and not reason else [CPU]
    if wanted[0] == CUDA:
        ort.preload_dlls()
    session = _session(graph, wanted, threads)
    provider = session.get_providers()[0]
    if wanted[0] == CUDA and provider != CUDA:
        reason = "ONNX Runtime fell back: its CUDA or cuDNN libraries are missing or of another version"
        if device == "cuda":
            raise DeviceUnavailable(f"the device cuda was asked for, but the session runs on {provider}: {reason}")
    return session, DeviceReport(device, provider, reason)


def _why_no_cuda() -> str:
    if CUDA not in ort.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"
    if not cuda_driver_present():
        return "there is no NVIDIA driver here (libcuda.so.1 is not found)"
    return ""


def _session(graph: bytes, providers: list[str], threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A spinning pool burns the cores that decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise BundleError(f"model.onnx: ONNX Runtime cannot load it ({type(error).__name__})") from error


def _check_graph(session: ort.InferenceSession, card: ModelCard) -> None:
    inputs = [(node.name, node.type, node.shape) for node in session.get_inputs()]
    outputs = [(node.name, node.type, node.shape) for node in session.get_outputs()]
    size = [card.input.height, card.input.width, 3]
    if len(inputs) != 1 or inputs[0][:2] != ("image", "tensor(uint8)") or inputs[0][2][1:] != size:
        raise BundleError(f"model.onnx: the input is not `image` uint8 [N, {size[0]}, {size[1]}, 3] as the card says")
    if not isinstance(inputs[0][2][0], str):
        raise BundleError("model.onnx: the batch size is fixed; export it with a dynamic first axis")
    if len(outputs) != 1 or outputs[0][:2] != ("logits", "tensor(float)") or outputs[0][2][1:] != [card.outputs]:
        raise BundleError(f"model.onnx: the output is not `logits` float32 [N, {card.outputs}] as the card says")
    inside = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if inside is None:
        raise BundleError(f"model.onnx: metadata_props has no {METADATA_KEY}")
    exported = ModelCard.parse(inside, "model.onnx metadata").model_copy(update={"sha256": card.sha256})
    other = [name for name in ModelCard.model_fields if getattr(card, name) != getattr(exported, name)]
    if other:
        raise BundleError(f"card.json is not the card that model.onnx was exported with: {', '.join(other)} differ")


def _check_golden(engine: Engine) -> None:
    card = engine.card
    try:
        pixels = decode_image(card.golden.png)
    except InvalidInput as error:
        raise BundleError(f"card.json: golden.image_png: {error}") from None
    if pixels.shape != (card.input.height, card.input.width, 3):
        raise BundleError("card.json: golden.image_png is not of the input's size")
    try:
        got = engine.run(pixels[None])[0]
    except InferenceFailed as error:
        raise BundleError("model.onnx: the golden input cannot be run") from error
    want = np.asarray(card.golden.logits)
    difference = float(np.abs(got - want).max())
    if not difference <= _GOLDEN_TOLERANCE.get(engine.device.provider, 2e-2) * max(1.0, float(np.abs(want).max())):
        raise BundleError(f"model.onnx: the golden input gives other logits than at export (off by {difference:.3g})")
