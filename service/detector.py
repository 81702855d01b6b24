"""A detector's checked bundle in a session, and what it says of one picture. Usable without HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.boxes import make_anchors
from models.bundle import Bundle
from models.class_logits import ClassLogits, HostLogits
from models.detect import Detection, Detections, Geometry, detector_of
from models.fit import Fitted
from service.engine import BundleEngine, check_golden, check_outputs
from service.errors import InferenceFailed
from service.loss_graph import DeviceLogits, LossGraph
from service.runtime import CUDA, Device

_RAW = ("cls_logits", "box_deltas")
_FOUND = ("boxes", "scores", "classes", "image_index")
_TASK = Detection()
GRAPH_ON = frozenset({CUDA})
"""Providers with which losses are worked out by the bundle's loss graph; with others numpy is quicker."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which detections a request wants. Pictures of equal wishes share a batch.

    Attributes:
        score: detections above this score, in [0, 1].
        iou: of two of a class that overlap by more, the better one stays.
        most: of one picture at most; 0 wants the raw outputs instead.
    """

    score: float
    iou: float
    most: int


RAW = Wish(1.0, 1.0, 0)


@dataclass(frozen=True, slots=True)
class Raw:
    """The raw outputs for one picture: what /loss needs.

    Attributes:
        cls_logits: (A, K) float32, here or on the device.
        box_deltas: (A, 4) float32.
        geometry: of the picture.
    """

    cls_logits: ClassLogits
    box_deltas: NDArray[np.float32]
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Found:
    """The detections of one picture, in its own pixels."""

    detections: Detections
    geometry: Geometry


class DetectorEngine(BundleEngine):
    """A detector's checked bundle; its arguments and errors are those of `BundleEngine`.

    Attributes:
        spec: the card's.
        loss_graph: None where the bundle has none, as those of before there was one.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        super().__init__(bundle, device, threads)
        self.spec = detector_of(self.card)
        anchors = len(make_anchors(self.spec, self.card.input.height, self.card.input.width))
        shapes = {"cls_logits": (anchors, len(self.card.labels)), "box_deltas": (anchors, 4)}
        check_outputs(
            self.runtime,
            {name: ("FP32", shape) for name, shape in shapes.items()}
            | {"boxes": ("FP32", (4,)), "scores": ("FP32", ()), "classes": ("INT64", ()), "image_index": ("INT64", ())},
        )
        check_golden(self.card, self.device, self._golden)
        graph = bundle.loss_graph
        self.loss_graph = None if graph is None else LossGraph(graph, device, threads)

    @property
    def usual(self) -> Wish:
        """What the card wants where a request says nothing."""
        return Wish(self.spec.score_threshold, self.spec.iou_threshold, self.spec.max_detections)

    def run(self, pictures: Sequence[Fitted], wish: Wish) -> list[Raw | Found | Exception]:
        """What was wished for of each picture; one whose numbers are not finite becomes its own error.

        Args:
            pictures: of the input's size.
            wish: the same for all.

        Raises:
            InferenceFailed: the runtime failed.
        """
        images = np.stack([one.pixels for one in pictures])
        places = [Geometry(one.scale, one.offset, *one.size) for one in pictures]
        if wish.most == 0:
            logits, deltas = self._raw(images)
            return [
                Raw(one, own, place)
                if one.is_finite and np.isfinite(own).all()
                else InferenceFailed("the model answered numbers that are not finite")
                for one, own, place in zip(logits, deltas, places, strict=True)
            ]
        boxes, scores, classes, index = self.runtime.run(_feeds(images, wish), _FOUND)
        return [
            Found(_TASK.predict(boxes[index == n], classes[index == n], scores[index == n], place), place)
            for n, place in enumerate(places)
        ]

    def blank(self, size: int) -> Callable[[], object]:
        """The run of a blank batch of that size."""
        feeds = _feeds(self._blank_images(size), self.usual)
        return lambda: self.runtime.run(feeds, _FOUND)

    def _raw(self, images: NDArray[np.uint8]) -> tuple[Sequence[ClassLogits], NDArray[np.float32]]:
        """The logits of each image, and the deltas (N, A, 4)."""
        count, graph = len(images), self.loss_graph
        if graph is not None and self.device.provider in GRAPH_ON:
            batch, moved = self.runtime.run_bound(_feeds(images, RAW), _RAW, staying=("cls_logits",))
            _check_rows((batch.shape(), moved.shape()), count)
            return [DeviceLogits(graph, batch, n) for n in range(count)], moved.numpy()
        logits, deltas = self.runtime.run(_feeds(images, RAW), _RAW)
        _check_rows((logits.shape, deltas.shape), count)
        return [HostLogits(one) for one in logits], deltas

    def _golden(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        logits, deltas = self.runtime.run(_feeds(images, RAW), _RAW)
        _check_rows((logits.shape, deltas.shape), len(images))
        return {"logits": logits[0].max(axis=0), "deltas": deltas[0].mean(axis=0)}


def _check_rows(shapes: Sequence[Sequence[int]], images: int) -> None:
    if any(shape[0] != images for shape in shapes):
        raise InferenceFailed(f"the model answered {tuple(shapes[0])} for {images} images")


def _feeds(images: NDArray[np.uint8], wish: Wish) -> dict[str, NDArray[np.generic]]:
    return {
        "image": images,
        "score_threshold": np.array([wish.score], np.float32),
        "iou_threshold": np.array([wish.iou], np.float32),
        "max_detections": np.array([wish.most], np.int64),
    }
