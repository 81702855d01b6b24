"""A trained detector to one ONNX graph that ends in detections: normalisation, net, decoding and suppression inside.

Inputs: `image` uint8 [N, H, W, 3], and three that may be left out because they are initializers with the card's values:
`score_threshold` float32 [1], `iou_threshold` float32 [1], `max_detections` int64 [1].

Outputs: `cls_logits` float32 [N, A, K] and `box_deltas` float32 [N, A, 4], of the anchors of
`models.boxes.make_anchors`; and the detections of the whole batch in one list, by image, then by falling score, at most
`max_detections` of an image: `boxes` float32 [D, 4], input pixels, clipped to the input; `scores` float32 [D], above
`score_threshold`; `classes` int64 [D]; `image_index` int64 [D], 0 to N - 1. D may be 0. A flat list, because a padded
one needs a count per image and a convention for what fills it.

Suppression is per class and looks at the 1,000 best pairs of anchor and class of an image (as torchvision does per
level). ONNX Runtime computes every output whatever is asked for, so who needs only the raw outputs asks for them with
`max_detections` 0, which ends suppression before it begins.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from models.boxes import decode_boxes, make_anchors
from models.bundle import sha256_of
from models.card import Golden, ImageInput, ModelCard
from models.detector_spec import DetectorSpec
from models.errors import BundleError
from models.fit import Pixels
from models.nets.graphs import (
    OPSET,
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
from models.nets.loss_graph import build_loss_graph
from models.nets.retinanet import RetinaNet
from models.nets.served import ServedDetector

RAW = ("cls_logits", "box_deltas")
DETECTIONS = ("boxes", "scores", "classes", "image_index")
_CANDIDATES = ("candidate_boxes", "candidate_scores", "candidate_classes")
_PIXELS = 0.01
# The candidates of an image come by falling score, so that what is kept of them, row by row, is in the right order.
_SUPPRESSION = """
<ir_version: 10, opset_import: ["" : {opset}]>
suppression (
    float[N, C, 4] candidate_boxes, float[N, C] candidate_scores, int64[N, C] candidate_classes,
    float[1] score_threshold, float[1] iou_threshold, int64[1] max_detections
) => (float[D, 4] boxes, float[D] scores, int64[D] classes, int64[D] image_index)
{{
    one_axis = Constant<value_ints = [1]> ()
    first_axis = Constant<value_ints = [0]> ()
    axis = Constant<value_int = 1> ()
    yes = Constant<value_ints = [1]> ()
    no = Constant<value_float = -1.0> ()
    outer = Constant<value_ints = [0, 2]> ()
    class_list = Constant<value_ints = [{classes}]> ()
    every_class = Unsqueeze (class_list, outer)
    own = Unsqueeze (candidate_classes, one_axis)
    is_own = Equal (own, every_class)
    score_row = Unsqueeze (candidate_scores, one_axis)
    class_scores = Where (is_own, score_row, no)
    kept = NonMaxSuppression (candidate_boxes, class_scores, max_detections, iou_threshold, score_threshold)
    places = Gather<axis = 1> (kept, outer)
    shape = Shape (candidate_scores)
    none = ConstantOfShape (shape)
    count = Shape<start = 0, end = 1> (places)
    ones_like = Expand (yes, count)
    none_int = Cast<to = 7> (none)
    marks = ScatterND (none_int, places, ones_like)
    rank = CumSum (marks, axis)
    in_time = LessOrEqual (rank, max_detections)
    marked = Cast<to = 9> (marks)
    chosen = And (marked, in_time)
    across = NonZero (chosen)
    where = Transpose<perm = [1, 0]> (across)
    boxes = GatherND (candidate_boxes, where)
    scores = GatherND (candidate_scores, where)
    classes = GatherND (candidate_classes, where)
    image_column = Gather<axis = 0> (across, first_axis)
    image_index = Squeeze (image_column, first_axis)
}}
"""


def export_detector(net: RetinaNet, facts: dict[str, Any], images: Pixels) -> Export:
    """Exports a detector, checks the graph against it, and completes the card.

    Args:
        net: of the levels, ratios and labels that the facts name; it is left as it is.
        facts: the fields of `ModelCard`, but for those that are found here (golden, parity_max_difference, sha256).
        images: (N, height, width, 3) uint8, N >= 1, real ones; the first is the golden one, 32 are compared.

    Returns:
        The graph that the module's docstring describes, opset 20, one file, with the card in `metadata_props`; and the
        loss graph.

    Raises:
        BundleError: logits or deltas differ from the net's by more than 1e-4 of max(1, |value|), are not finite, or
            the graph's boxes are not those of its deltas.
    """
    spec, detector = facts["input"], facts["detector"]
    served = ServedDetector(plain_copy(net), spec, detector).eval().requires_grad_(False)
    sample = choose_sample(images)
    graph = _append_suppression(to_graph(served, sample[:2], (*RAW, *_CANDIDATES)), detector, len(facts["labels"]))
    session = open_session(graph.SerializeToString())
    difference = _measure_parity(served, session, sample)
    if not difference <= PARITY_LIMIT:
        raise BundleError(
            f"ONNX Runtime's outputs differ from torch's by {difference:.3g}; {PARITY_LIMIT:g} is allowed"
        )
    _check_boxes(session, sample, spec, detector)
    logits, deltas = run_raw(session, sample[:1])
    golden = Golden(
        image_png=as_png(sample[0]),
        logits=logits[0].max(axis=0).tolist(),
        deltas=deltas[0].mean(axis=0, dtype=np.float64).tolist(),
    )
    losses = build_loss_graph()
    card = ModelCard(**facts, golden=golden, parity_max_difference=difference, loss_graph_sha256=sha256_of(losses))
    return seal(graph, card, losses)


def run_raw(session: onnxruntime.InferenceSession, images: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, A, K) and deltas (N, A, 4) of images (N, H, W, 3), without suppression."""
    logits, deltas = session.run(list(RAW), {"image": images, "max_detections": np.zeros(1, np.int64)})
    return logits, deltas


def _append_suppression(graph: onnx.ModelProto, detector: DetectorSpec, classes: int) -> onnx.ModelProto:
    text = _SUPPRESSION.format(opset=OPSET, classes=", ".join(map(str, range(classes))))
    tail = onnx.parser.parse_model(text)
    tail.ir_version = graph.ir_version
    prefixed = onnx.compose.add_prefix(tail, "suppression/", rename_inputs=False, rename_outputs=False)
    merged = onnx.compose.merge_models(
        graph, prefixed, io_map=[(name, name) for name in _CANDIDATES], outputs=[*RAW, *DETECTIONS]
    )
    del merged.opset_import[1:]  # both graphs' own, the same
    defaults: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "score_threshold": np.array([detector.score_threshold], np.float32),
        "iou_threshold": np.array([detector.iou_threshold], np.float32),
        "max_detections": np.array([detector.max_detections], np.int64),
    }
    for name, value in defaults.items():
        merged.graph.initializer.append(numpy_helper.from_array(value, name))
    return merged


def _measure_parity(served: ServedDetector, session: onnxruntime.InferenceSession, images: Pixels) -> float:
    """Largest difference of logits or deltas relative to max(1, |value|), over all images in batches of each size."""
    worst = 0.0
    for batch in parity_batches(images):
        with torch.inference_mode():
            want = served(torch.from_numpy(batch))[:2]
        got = run_raw(session, batch)
        worst = max(worst, *(relative_gap(*pair) for pair in zip(got, (each.numpy() for each in want), strict=True)))
    return worst


def _check_boxes(
    session: onnxruntime.InferenceSession, images: Pixels, spec: ImageInput, detector: DetectorSpec
) -> None:
    """Every box that the graph answers must be one that `models.boxes` decodes from the graph's own deltas."""
    anchors = make_anchors(detector, spec.height, spec.width)
    limit = np.tile([spec.width, spec.height], 2).astype(np.float64)
    feeds = {"image": images, "score_threshold": np.zeros(1, np.float32)}
    boxes, index, deltas = session.run(["boxes", "image_index", "box_deltas"], feeds)
    for row in range(len(images)):
        known = np.clip(decode_boxes(deltas[row], anchors), 0.0, limit)
        for box in boxes[index == row]:
            if not np.abs(known - box).max(axis=1).min() <= _PIXELS:
                raise BundleError("the graph's boxes are not those of its anchors and deltas")
