"""A checked bundle in a session. Usable without HTTP: `run(images) -> logits`."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from models.bundle import METADATA_KEY, Bundle
from models.card import ModelCard
from models.errors import BundleError, InvalidInput
from models.image import decode_image
from service.errors import InferenceFailed
from service.runtime import CPU, CUDA, Device, DeviceReport, Runtime

WORTH = 0.1
"""A larger batch must cost this share less per image to be worth the wait."""
QUICK = 0.001
"""Seconds for one image on one thread, below which a net keeps to it, and to the event loop's."""
# What another machine's arithmetic may differ by, relative to the largest logit: CUDA may use TF32.
_GOLDEN_TOLERANCE = {CPU: 1e-3, CUDA: 2e-2}


class BundleEngine(ABC):
    """A checked bundle in a session of ONNX Runtime, whatever its task.

    Args:
        bundle: what to run.
        device: `cuda` refuses to run on anything else; `auto` takes CUDA where it works.
        threads: intra-op threads on the CPU.

    Attributes:
        quick: whether one image takes less time than a hop between threads is worth.

    Raises:
        BundleError: graph and card do not agree, or the golden pair is not met.
        DeviceUnavailable: cuda was asked for and the session has no CUDA provider.
    """

    quick = False

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self.card = bundle.card
        self.runtime = Runtime(bundle.graph, device, threads)
        self.device = self.runtime.device
        check_card(self.runtime, self.card)

    @abstractmethod
    def seconds(self, size: int) -> float:
        """How long a blank batch of that size takes; the best of three runs."""


class Engine(BundleEngine):
    """A classifier's checked bundle; its arguments and errors are those of `BundleEngine`."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        super().__init__(bundle, device, threads)
        check_outputs(self.runtime, {"logits": ("FP32", (self.card.outputs,))})
        check_golden(self.card, self.device, lambda images: {"logits": self.run(images)[0]})
        self.quick = self.device.provider == CPU and threads == 1 and self.seconds(1) < QUICK

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (N, K) float32 for images (N, height, width, 3) uint8.

        Raises:
            InferenceFailed: the runtime failed, or answered another number of rows.
        """
        logits = self.runtime.run({"image": images}, ("logits",))[0]
        if logits.shape != (len(images), self.card.outputs):
            raise InferenceFailed(f"the model answered {logits.shape} for {len(images)} images")
        return np.asarray(logits, np.float32)

    def seconds(self, size: int) -> float:
        """How long a blank batch of that size takes; the best of three runs."""
        return time_blank(self.card, self.run, size)


def warm_up(engine: BundleEngine, most: int) -> int:
    """Runs blank batches of 1, 2, 4 ... images, and finds the size from which larger ones gain nothing.

    A net that fills the cores with one image gains nothing from more: small batches then keep decoding and running
    side by side.

    Args:
        engine: of the bundle.
        most: images in one batch at most.

    Returns:
        The batch size to serve with.
    """
    best, best_each = 1, engine.seconds(1)
    size = 2
    while size <= most:
        each = engine.seconds(size) / size
        if each > (1.0 - WORTH) * best_each:
            break
        best, best_each, size = size, each, size * 2
    return best


def is_quick(runtime: Runtime) -> bool:
    """Whether a graph without a card, on one thread of the CPU, takes a row sooner than a hop between threads pays."""
    row = runtime.blank_row()
    if row is None or runtime.device.provider != CPU:
        return False
    names = [spec.name for spec in runtime.outputs]
    try:
        return best_seconds(lambda: runtime.run(row, names)) < QUICK
    except InferenceFailed:
        return False  # it does not take zeros


def time_blank(card: ModelCard, run: Callable[[NDArray[np.uint8]], object], size: int) -> float:
    """Seconds of a blank batch; the best of three runs."""
    images = np.zeros((size, card.input.height, card.input.width, 3), np.uint8)
    return best_seconds(lambda: run(images))


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of three runs."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def check_card(runtime: Runtime, card: ModelCard) -> None:
    """Refuses a graph whose image input, or whose own copy of the card, is not what the card says."""
    height, width = card.input.height, card.input.width
    one = runtime.inputs[0]
    if len(runtime.inputs) != 1 or (one.name, one.datatype, one.shape[1:]) != ("image", "UINT8", (height, width, 3)):
        raise BundleError(f"model.onnx: the input is not `image` uint8 [N, {height}, {width}, 3] as the card says")
    if one.shape[0] != -1:
        raise BundleError("model.onnx: the batch size is fixed; export it with a dynamic first axis")
    inside = runtime.metadata.get(METADATA_KEY)
    if inside is None:
        raise BundleError(f"model.onnx: metadata_props has no {METADATA_KEY}")
    exported = ModelCard.parse(inside, "model.onnx metadata").model_copy(update={"sha256": card.sha256})
    other = [name for name in ModelCard.model_fields if getattr(card, name) != getattr(exported, name)]
    if other:
        raise BundleError(f"card.json is not the card that model.onnx was exported with: {', '.join(other)} differ")


def check_outputs(runtime: Runtime, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuses a graph whose outputs are not these, each with its datatype and its shape after the first side."""
    found = {spec.name: (spec.datatype, spec.shape[1:]) for spec in runtime.outputs}
    if found != dict(wanted):
        (name, (_, shape)), *_ = wanted.items()
        more = f", {', '.join(list(wanted)[1:])}" if len(wanted) > 1 else ""
        raise BundleError(
            f"model.onnx: the output is not `{name}` float32 [N, {', '.join(map(str, shape))}]{more} as the card says"
        )


def check_golden(
    card: ModelCard, device: DeviceReport, run: Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]
) -> None:
    """Refuses a graph that gives other numbers for the golden input than at export.

    Args:
        card: with the golden pair.
        device: says how near is near enough.
        run: the numbers by their name in `Golden`, for images (1, height, width, 3).
    """
    try:
        pixels = decode_image(card.golden.png)
    except InvalidInput as error:
        raise BundleError(f"card.json: golden.image_png: {error}") from None
    if pixels.shape != (card.input.height, card.input.width, 3):
        raise BundleError("card.json: golden.image_png is not of the input's size")
    try:
        found = run(pixels[None])
    except InferenceFailed as error:
        raise BundleError("model.onnx: the golden input cannot be run") from error
    for name, got in found.items():
        want = np.asarray(getattr(card.golden, name))
        difference = float(np.abs(got - want).max())
        if not difference <= _GOLDEN_TOLERANCE.get(device.provider, 2e-2) * max(1.0, float(np.abs(want).max())):
            raise BundleError(
                f"model.onnx: the golden input gives other {name} than at export (off by {difference:.3g})"
            )
