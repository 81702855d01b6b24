"""The focal loss of a detector's anchors where its logits are: the bundle's loss.onnx in a session beside the model's.

What comes to the host is a few numbers per anchor, and rows of logits of the anchors that are asked for.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models import loss_arguments as check
from models.boxes import Floats, Indices
from models.bundle import LOSS_FILE
from models.card import Alpha
from models.class_logits import NO_CLASS, ClassSummary, HostLogits
from models.errors import BundleError
from service.errors import InferenceFailed
from service.runtime import Device, Runtime

_INPUTS = {
    "cls_logits": ("FP32", 3),
    "image": ("INT64", 1),
    "anchor": ("INT64", 1),
    "label": ("INT64", 1),
    "gamma": ("FP32", 1),
    "positive_weight": ("FP32", 1),
    "negative_weight": ("FP32", 1),
    "label_smoothing": ("FP32", 1),
}
_SUMMARY = {"top": ("INT64", 1), "best": ("FP32", 1), "second": ("FP32", 1), "nothing": ("FP32", 1)}
_OUTPUTS = {"focal": ("FP32", 1), "given": ("FP32", 1), **_SUMMARY, "finite": ("BOOL", 1), "logits": ("FP32", 2)}
_GOLDEN_LOGITS = (-80.0, -20.0, -4.5, -0.5, 0.0, 1.0, 12.0, 60.0)
_TOLERANCE = 1e-4


class LossGraph:
    """A loss graph in a session; its inputs and outputs are told in models.nets.loss_graph.

    Args:
        graph: serialised.
        device: as the model's.
        threads: intra-op threads on the CPU.

    Raises:
        BundleError: it is no loss graph, or its losses are not those of models.losses.
        DeviceUnavailable: cuda was asked for and the session has no CUDA provider.
    """

    def __init__(self, graph: bytes, device: Device, threads: int) -> None:
        self._runtime = Runtime(graph, device, threads, LOSS_FILE)
        for kind, specs, wanted in (
            ("inputs", self._runtime.inputs, _INPUTS),
            ("outputs", self._runtime.outputs, _OUTPUTS),
        ):
            if {spec.name: (spec.datatype, len(spec.shape)) for spec in specs} != wanted:
                raise BundleError(f"{LOSS_FILE}: the {kind} are not those of a loss graph: {', '.join(wanted)}")
        self._check_losses()

    def run(self, feeds: Mapping[str, NDArray[Any] | ort.OrtValue], *outputs: str) -> list[NDArray[Any]]:
        """The named outputs, on the host.

        Raises:
            InferenceFailed: the runtime failed.
        """
        return [one.numpy() for one in self._runtime.run_bound(feeds, outputs)]

    def _check_losses(self) -> None:
        logits = np.array(_GOLDEN_LOGITS, np.float32).reshape(1, -1, 1)
        anchors = np.tile(np.arange(logits.shape[1]), 2)
        classes = np.repeat([0, NO_CLASS], logits.shape[1])
        asked = anchors, classes, 1.5, 0.25, 0.0
        try:
            got = DeviceLogits(self, ort.OrtValue.ortvalue_from_numpy(logits), 0).focal(*asked)
        except InferenceFailed as error:
            raise BundleError(f"{LOSS_FILE}: it cannot be run") from error
        want = HostLogits(logits[0]).focal(*asked)
        # Losses below the smallest normal float32 may be flushed to 0.
        if not (np.abs(got - want) <= _TOLERANCE * want + np.finfo(np.float32).tiny).all():
            raise BundleError(f"{LOSS_FILE}: its losses are not those of the focal loss")


class DeviceLogits:
    """Class logits of one image that stay where the model left them; losses in float32. A `ClassLogits`.

    A batch takes its memory until the last of its images is forgotten.

    Args:
        graph: what works on them.
        batch: `cls_logits` (N, A, K) float32 of a whole batch.
        image: which of the N.
    """

    def __init__(self, graph: LossGraph, batch: ort.OrtValue, image: int) -> None:
        self._graph, self._batch, self._image = graph, batch, image
        self._shape: tuple[int, ...] = tuple(batch.shape()[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """(A, K)."""
        return self._shape

    @property
    def is_finite(self) -> bool:
        """Whether all are finite."""
        return self._looked[1]

    @property
    def summary(self) -> ClassSummary:
        """Of each anchor."""
        return self._looked[0]

    def rows(self, anchors: Indices) -> NDArray[np.floating]:
        """The logits (R, K) of anchors (R,), as they are."""
        if not len(anchors):
            return np.zeros((0, self._shape[1]), np.float32)
        return self._ask(anchors, np.full(len(anchors), NO_CLASS), "logits")[0]

    def of_classes(self, anchors: Indices, classes: Indices) -> Floats:
        """The logits (R,) of classes (R,) at anchors (R,)."""
        if not len(anchors):
            return np.zeros(0)
        return self._ask(anchors, classes, "given")[0].astype(np.float64)

    def focal(self, anchors: Indices, classes: Indices, gamma: float, alpha: Alpha, smoothing: float) -> Floats:
        """Focal loss (R,), as `models.class_logits.ClassLogits.focal` describes it.

        Raises:
            InvalidInput: a parameter out of its range.
            InferenceFailed: the runtime failed, or a loss overflows float32.
        """
        weights = check.sigmoid_alpha(alpha, "expected", self._shape[1])
        asked = check.check_gamma(gamma), check.check_smoothing(smoothing)
        if not len(anchors):
            return np.zeros(0)
        found = self._ask(anchors, classes, "focal", gamma=asked[0], smoothing=asked[1], weights=weights)[0]
        if not np.isfinite(found).all():
            raise InferenceFailed("the loss overflows float32")
        return found.astype(np.float64)

    @cached_property
    def _looked(self) -> tuple[ClassSummary, bool]:
        anchors = np.arange(self._shape[0])
        *found, finite = self._ask(anchors, np.full(len(anchors), NO_CLASS), *_SUMMARY, "finite")
        top, *others = found
        return ClassSummary(top, *(one.astype(np.float64) for one in others)), bool(finite.all())

    def _ask(
        self,
        anchors: Indices,
        classes: Indices,
        *outputs: str,
        gamma: float = 0.0,
        smoothing: float = 0.0,
        weights: float | Floats | None = None,
    ) -> list[NDArray[Any]]:
        yes = np.ones(self._shape[1]) if weights is None else np.full(self._shape[1], weights)
        no = yes if weights is None else 1.0 - yes
        feeds: dict[str, NDArray[Any] | ort.OrtValue] = {
            "cls_logits": self._batch,
            "image": np.array([self._image]),
            "anchor": np.asarray(anchors, np.int64),
            "label": np.asarray(classes, np.int64),
            "gamma": np.array([gamma], np.float32),
            "positive_weight": yes.astype(np.float32),
            "negative_weight": no.astype(np.float32),
            "label_smoothing": np.array([smoothing], np.float32),
        }
        return self._graph.run(feeds, *outputs)
