"""One ONNX Runtime session and the truth about its device; any graph of plain tensors."""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.bundle import GRAPH_FILE
from models.errors import BundleError, DeviceUnavailable
from service.errors import InferenceFailed, NotReady, ServiceError
from service.onnx_file import Operators, has_external_data, without_rank
from service.onnx_words import words_of

Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
DATATYPES: dict[str, tuple[str, type[Any]]] = {
    "tensor(bool)": ("BOOL", np.bool_),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(uint16)": ("UINT16", np.uint16),
    "tensor(uint32)": ("UINT32", np.uint32),
    "tensor(uint64)": ("UINT64", np.uint64),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int16)": ("INT16", np.int16),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(float16)": ("FP16", np.float16),
    "tensor(float)": ("FP32", np.float32),
    "tensor(double)": ("FP64", np.float64),
    "tensor(string)": ("BYTES", np.object_),
}
"""ONNX Runtime's type names to those of the Open Inference Protocol, with numpy's."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: in the graph.
        datatype: of the Open Inference Protocol, such as FP32.
        shape: -1 where it varies.
        ranked: whether it has as many sides as `shape`; where not, any number of them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    ranked: bool = True

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape may be given."""
        if not self.ranked:
            return True
        return len(shape) == len(self.shape) and all(
            [want in (-1, got) for want, got in zip(self.shape, shape, strict=True)]
        )


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


class Runtime:
    """A graph in a session of ONNX Runtime.

    Args:
        graph: the serialised model, one file.
        device: `cuda` refuses to run on anything else; `auto` takes CUDA where it works.
        threads: intra-op threads on the CPU.
        file: what errors call it.

    Attributes:
        inputs: of the graph.
        optional: inputs that have a value where none is given.
        outputs: of the graph.
        metadata: that the graph carries.
        batchable: whether rows of several requests may share a run, as the names of the sides have it.
        operators: what the graph is made of.

    Raises:
        BundleError: it cannot be loaded, is not one file, or has inputs or outputs that are no plain tensors.
        DeviceUnavailable: cuda was asked for and the session has no CUDA provider.
    """

    def __init__(self, graph: bytes, device: Device, threads: int, file: str = GRAPH_FILE) -> None:
        if has_external_data(graph):
            raise BundleError(f"{file}: it keeps tensors in other files; save it as one file")
        self._session, self.device = _open_session(graph, device, threads, file)
        self._run_options = ort.RunOptions()
        self.operators = Operators(graph)
        free = without_rank(graph)
        self.inputs = tuple(_spec(node, f"{file}: the input", free) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, f"{file}: the output", free) for node in self._session.get_outputs())
        more = [node for node in self._session.get_overridable_initializers() if node.type in DATATYPES]
        self.optional = tuple(_spec(node, f"{file}: the input", free) for node in more)
        if not self.inputs or not self.outputs:
            raise BundleError(f"{file}: a model without inputs or outputs cannot be served")
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        # Only a first side of one name all over says that rows may be joined and told apart again.
        sides = {node.shape[0] if node.shape else None for node in self._nodes()}
        self.batchable = len(sides) == 1 and isinstance(sides.pop(), str)

    def _nodes(self) -> list[Any]:
        return [*self._session.get_inputs(), *self._session.get_outputs()]

    def end(self) -> None:
        """Ends all runs, between two operators, and lets none begin any more: they fail."""
        self._run_options.terminate = True

    def blank_row(self) -> dict[str, NDArray[Any]] | None:
        """Zeros for one row; None where an input is text, of any rank, or has a side that varies besides the first."""
        if any(spec.datatype == "BYTES" or -1 in spec.shape[1:] or not spec.ranked for spec in self.inputs):
            return None
        kinds = dict(DATATYPES.values())
        return {
            spec.name: np.zeros([1 if side == -1 else side for side in spec.shape], kinds[spec.datatype])
            for spec in self.inputs
        }

    def run(self, feeds: dict[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """The named outputs for the named inputs.

        Raises:
            InferenceFailed: the runtime failed.
            NotReady: `end` was called.
        """
        try:
            found: list[NDArray[Any]] = self._session.run(outputs, feeds, self._run_options)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise self._failure() from error
        return found

    def run_bound(
        self, feeds: Mapping[str, NDArray[Any] | ort.OrtValue], outputs: Sequence[str], staying: Collection[str] = ()
    ) -> list[ort.OrtValue]:
        """The named outputs for the named inputs by ONNX Runtime's IO binding: what is on the device is not copied.

        Args:
            feeds: arrays of the host, or values where an earlier run left them.
            outputs: names; of the others none leaves the device.
            staying: those that stay on the session's device; the rest come to the host.

        Raises:
            InferenceFailed: the runtime failed.
            NotReady: `end` was called.
        """
        here = "cuda" if self.device.provider == CUDA else "cpu"
        bound = self._session.io_binding()
        # By value: what binds an array by name does not know inputs that may be left out.
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(one)) if isinstance(one, np.ndarray) else one
            for name, one in feeds.items()
        }
        try:
            for name, value in values.items():
                bound.bind_ortvalue_input(name, value)
            for name in outputs:
                bound.bind_output(name, here if name in staying else "cpu")
            self._session.run_with_iobinding(bound, self._run_options)
            bound.synchronize_outputs()
            found: list[ort.OrtValue] = bound.get_outputs()
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise self._failure() from error
        return found

    def _failure(self) -> ServiceError:
        ended = self._run_options.terminate
        return NotReady("the model was ended") if ended else InferenceFailed("the model's run failed")


def _spec(node: Any, side: str, free: set[str]) -> TensorSpec:
    if node.type not in DATATYPES:
        raise BundleError(f"{side} {node.name} is a {node.type}; only plain tensors, and not bfloat16, can be served")
    if not node.shape and node.name in free:
        return TensorSpec(node.name, DATATYPES[node.type][0], (-1,), ranked=False)
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, DATATYPES[node.type][0], shape)


def cuda_driver_present() -> bool:
    """Whether this machine has an NVIDIA driver at all; a cheap test before any CUDA library is loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _open_session(graph: bytes, device: Device, threads: int, file: str) -> tuple[ort.InferenceSession, DeviceReport]:
    reason = _why_no_cuda() if device != "cpu" else ""
    if device == "cuda" and reason:
        raise DeviceUnavailable(f"the device cuda was asked for, but {reason}")
    wanted = [CUDA, CPU] if device != "cpu" and not reason else [CPU]
    if wanted[0] == CUDA:
        ort.preload_dlls()
    session = _session(graph, wanted, threads, file)
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


def _session(graph: bytes, providers: list[str], threads: int, file: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A spinning pool burns the cores that decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise BundleError(f"{file}: ONNX Runtime cannot load it: {words_of(error) or type(error).__name__}") from error
