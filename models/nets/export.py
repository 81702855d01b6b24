"""A trained net to an ONNX graph that takes decoded images: normalisation inside, checked against ONNX Runtime."""

from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.card import Golden, ImageInput, ModelCard
from models.errors import BundleError
from models.fit import Pixels
from models.nets.graphs import (
    PARITY_LIMIT,
    Export,
    as_png,
    choose_sample,
    open_session,
    parity_batches,
    plain_copy,
    relative_gap,
    seal,
    to_graph,
)
from models.nets.served import Served


class ServedNet(Served):
    """A classifier behind its normalisation: what training evaluates and the bundle runs."""

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3), 0-255, to logits float32 (N, K)."""
        # A flatten of channels-last memory would be exported as a Gather over strides.
        return cast(Tensor, self.net(self.normalize(image).contiguous()))


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
    served = ServedNet(plain_copy(net), spec).eval().requires_grad_(False)
    sample = choose_sample(images)
    graph = _build_graph(served, sample[:2])
    session = open_session(graph.SerializeToString())
    difference = _measure_parity(served, session, sample)
    if not difference <= PARITY_LIMIT:
        raise BundleError(f"ONNX Runtime's logits differ from torch's by {difference:.3g}; {PARITY_LIMIT:g} is allowed")
    golden = Golden(image_png=as_png(sample[0]), logits=_run(session, sample[:1])[0].tolist())
    return seal(graph, ModelCard(**facts, golden=golden, parity_max_difference=difference))


def _build_graph(served: ServedNet, images: Pixels) -> onnx.ModelProto:
    return to_graph(served, images, ("logits",))


def _run(session: onnxruntime.InferenceSession, images: Pixels) -> NDArray[np.float32]:
    return np.asarray(session.run(["logits"], {"image": images})[0], np.float32)


def _measure_parity(served: ServedNet, session: onnxruntime.InferenceSession, images: Pixels) -> float:
    """Largest difference relative to max(1, |logit|), over all images in batches of each size."""
    worst = 0.0
    for batch in parity_batches(images):
        with torch.inference_mode():
            want = served(torch.from_numpy(batch)).numpy()
        worst = max(worst, relative_gap(_run(session, batch), want))
    return worst
