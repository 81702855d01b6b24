"""A checked bundle in a session. Usable without HTTP: `run(images) -> logits`."""

import time

import numpy as np
from numpy.typing import NDArray

from models.bundle import METADATA_KEY, Bundle
from models.card import ModelCard
from models.errors import BundleError, InvalidInput
from models.image import decode_image
from service.errors import InferenceFailed
from service.runtime import CPU, CUDA, Device, Runtime

WORTH = 0.1
"""A larger batch must cost this share less per image to be worth the wait."""
QUICK = 0.001
"""Seconds for one image on one thread, below which a net keeps to it, and to the event loop's."""
# What another machine's arithmetic may differ by, relative to the largest logit: CUDA may use TF32.
_GOLDEN_TOLERANCE = {CPU: 1e-3, CUDA: 2e-2}


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
        self.runtime = Runtime(bundle.graph, device, threads)
        self.device = self.runtime.device
        _check_graph(self.runtime, self.card)
        _check_golden(self)
        self.quick = self.device.provider == CPU and threads == 1 and self.seconds(1) < QUICK
        """Whether one image takes less time than a hop between threads is worth."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (N, K) float32 for images (N, height, width, 3) uint8.

        Raises:
            InferenceFailed: the runtime failed, or answered another number of rows.
        """
        logits = self.runtime.run({"image": images}, ("logits",))[0]
        if logits.shape != (len(images), self.card.outputs):
            raise InferenceFailed(f"the model answered {logits.shape} for {len(images)} images")
        return np.asarray(logits, np.float32)

    def warm_up(self, most: int) -> int:
        """Runs blank batches of 1, 2, 4 ... images, and finds the size from which larger ones gain nothing.

        A net that fills the cores with one image gains nothing from more: small batches then keep decoding and running
        side by side.

        Args:
            most: images in one batch at most.

        Returns:
            The batch size to serve with.
        """
        best, best_each = 1, self.seconds(1)
        size = 2
        while size <= most:
            each = self.seconds(size) / size
            if each > (1.0 - WORTH) * best_each:
                break
            best, best_each, size = size, each, size * 2
        return best

    def seconds(self, size: int) -> float:
        """How long a blank batch of that size takes; the best of three runs."""
        images = np.zeros((size, self.card.input.height, self.card.input.width, 3), np.uint8)
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            self.run(images)
            taken.append(time.perf_counter() - start)
        return min(taken)


def _check_graph(runtime: Runtime, card: ModelCard) -> None:
    height, width = card.input.height, card.input.width
    one = runtime.inputs[0]
    if len(runtime.inputs) != 1 or (one.name, one.datatype, one.shape[1:]) != ("image", "UINT8", (height, width, 3)):
        raise BundleError(f"model.onnx: the input is not `image` uint8 [N, {height}, {width}, 3] as the card says")
    if one.shape[0] != -1:
        raise BundleError("model.onnx: the batch size is fixed; export it with a dynamic first axis")
    if [(out.name, out.datatype, out.shape[1:]) for out in runtime.outputs] != [("logits", "FP32", (card.outputs,))]:
        raise BundleError(f"model.onnx: the output is not `logits` float32 [N, {card.outputs}] as the card says")
    inside = runtime.metadata.get(METADATA_KEY)
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
