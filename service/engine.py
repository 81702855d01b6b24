"""A checked bundle in a session. Usable without HTTP: `run(images) -> logits`."""

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
from service.warm_up import QUICK, Run, batch_size, best_seconds

# What another machine's arithmetic may differ by, relative to the largest logit: CUDA may use TF32.
_GOLDEN_TOLERANCE = {CPU: 1e-3, CUDA: 2e-2}
_LOGITS = ["logits"]


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
    def blank(self, size: int) -> Callable[[], object]:
        """The run of a blank batch of that size."""

    def _blank_images(self, size: int) -> NDArray[np.uint8]:
        return np.zeros((size, self.card.input.height, self.card.input.width, 3), np.uint8)


class Engine(BundleEngine):
    """A classifier's checked bundle; its arguments and errors are those of `BundleEngine`."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        super().__init__(bundle, device, threads)
        self._width = self.card.outputs
        check_outputs(self.runtime, {"logits": ("FP32", (self._width,))})
        check_golden(self.card, self.device, lambda images: {"logits": self.run(images)[0]})
        self.quick = self.device.provider == CPU and threads == 1 and best_seconds(self.blank(1)) < QUICK

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (N, K) float32 for images (N, height, width, 3) uint8.

        Raises:
            InferenceFailed: the runtime failed, or answered another number of rows.
        """
        logits: NDArray[np.float32] = self.runtime.run({"image": images}, _LOGITS)[0]
        if logits.shape != (len(images), self._width):
            raise InferenceFailed(f"the model answered {logits.shape} for {len(images)} images")
        return logits

    def blank(self, size: int) -> Callable[[], object]:
        """The run of a blank batch of that size."""
        images = self._blank_images(size)
        return lambda: self.run(images)


def quick_rows(runtime: Runtime, most: int) -> int:
    """How many rows a graph without a card, on one thread of the CPU, takes in one run in the event loop.

    Args:
        runtime: of the graph.
        most: rows in one run at most.

    Returns:
        0 where a hop between threads costs less than a row, where the graph does not take zeros, and where other values
        may take longer than zeros, or a side that varies is no rows.
    """
    row = runtime.blank_row()
    if row is None or runtime.device.provider != CPU or not runtime.operators.steady:
        return 0
    if not runtime.batchable and any(-1 in spec.shape for spec in runtime.inputs):
        return 0
    names = [spec.name for spec in runtime.outputs]

    def blank(rows: int) -> Run:
        feeds = row if rows == 1 else {name: np.repeat(one, rows, axis=0) for name, one in row.items()}
        return lambda: runtime.run(feeds, names)

    try:
        if best_seconds(blank(1)) >= QUICK:
            return 0
        return batch_size(blank, most if runtime.batchable else 1, quick=True)
    except InferenceFailed:
        return 0


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
