"""The detector's graph: what torch computes, and detections that obey the request, for every size of batch."""

import re
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from models.boxes import decode_boxes, make_anchors, suppress
from models.bundle import METADATA_KEY
from models.card import ClassFacts, ImageInput, ModelCard
from models.detector_spec import DetectorSpec
from models.errors import BundleError
from models.fit import Pixels
from models.image import decode_image
from models.nets import export_detector as module
from models.nets.detectors import build_detector, plan_of
from models.nets.export_detector import DETECTIONS, RAW, export_detector, run_raw
from models.nets.graphs import Export, open_session, plain_copy
from models.nets.retinanet import RetinaNet
from models.nets.served import ServedDetector
from scripts.items import embedded_items
from scripts.scenes import compose_scenes

SIDE = 128
INPUT = ImageInput(height=SIDE, width=SIDE)
ALL = [*RAW, *DETECTIONS]


def facts(labels: list[str], spec: DetectorSpec, size: ImageInput = INPUT) -> dict[str, Any]:
    classes = [ClassFacts(label=label, train_count=1, prior=0.3) for label in labels]
    return {"name": "d", "version": "1", "created": "2026-11-22T00:00:00+00:00", "task": "detection", "labels": labels,
            "input": size, "detector": spec, "classes": classes}  # fmt: skip


def lively(net: RetinaNet) -> RetinaNet:
    """A fresh net says nearly the same of every anchor; this one does not."""
    with torch.no_grad():
        for name, parameter in net.head.named_parameters():
            if name.endswith(("cls_logits.weight", "bbox_reg.weight")):
                parameter.mul_(8.0)
    return net


@pytest.fixture(scope="module")
def images() -> Pixels:
    return compose_scenes(embedded_items("test"), 9, seed=3).pixels


@pytest.fixture(scope="module")
def net() -> RetinaNet:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    return lively(build_detector("small", 3, plan_of("small").spec()))


@pytest.fixture(scope="module")
def exported(net: RetinaNet, images: Pixels) -> Export:
    return export_detector(net, facts(["a", "b", "c"], plan_of("small").spec()), images)


@pytest.fixture(scope="module")
def session(exported: Export) -> InferenceSession:
    return open_session(exported.graph)


def run(session: InferenceSession, images: Pixels, score: float = 0.05, iou: float = 0.5, most: int = 100) -> list[Any]:
    feeds = {
        "image": images,
        "score_threshold": np.array([score], np.float32),
        "iou_threshold": np.array([iou], np.float32),
        "max_detections": np.array([most], np.int64),
    }
    return list(session.run(ALL, feeds))


def expected(
    net: RetinaNet, images: Pixels, score: float, iou: float, most: int
) -> list[list[tuple[float, int, NDArray[np.float64]]]]:
    """Detections of each image by torch's logits and models.boxes alone, score first."""
    served = ServedDetector(plain_copy(net), INPUT, plan_of("small").spec()).eval()
    with torch.inference_mode():
        logits, deltas = (each.numpy().astype(np.float64) for each in served(torch.from_numpy(images))[:2])
    anchors = make_anchors(plan_of("small").spec(), SIDE, SIDE)
    out = []
    for row in range(len(images)):
        p, boxes = 1.0 / (1.0 + np.exp(-logits[row])), np.clip(decode_boxes(deltas[row], anchors), 0.0, SIDE)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        least = np.sort(p, axis=None)[-1000]
        found = []
        for k in range(p.shape[1]):
            likely = np.flatnonzero(seen & (p[:, k] > score) & (p[:, k] >= least))
            kept = likely[suppress(boxes[likely], p[likely, k], iou)]
            found += [(float(p[a, k]), k, boxes[a]) for a in kept]
        out.append(sorted(found, key=lambda each: -each[0])[:most])
    return out


def test_inputs_and_outputs_are_those_of_the_contract(exported: Export, session: InferenceSession) -> None:
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["N", SIDE, SIDE, 3])
    ]
    optional = {(one.name, one.type, tuple(one.shape)) for one in session.get_overridable_initializers()}
    assert optional == {
        ("score_threshold", "tensor(float)", (1,)),
        ("iou_threshold", "tensor(float)", (1,)),
        ("max_detections", "tensor(int64)", (1,)),
    }
    anchors = len(make_anchors(plan_of("small").spec(), SIDE, SIDE))
    assert [(one.name, one.type, one.shape) for one in session.get_outputs()] == [
        ("cls_logits", "tensor(float)", ["N", anchors, 3]),
        ("box_deltas", "tensor(float)", ["N", anchors, 4]),
        ("boxes", "tensor(float)", ["D", 4]),
        ("scores", "tensor(float)", ["D"]),
        ("classes", "tensor(int64)", ["D"]),
        ("image_index", "tensor(int64)", ["D"]),
    ]
    graph = onnx.load_from_string(exported.graph)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 20)]
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_raw_outputs_are_torchs(net: RetinaNet, session: InferenceSession, images: Pixels, count: int) -> None:
    served = ServedDetector(plain_copy(net), INPUT, plan_of("small").spec()).eval()
    with torch.inference_mode():
        logits, deltas = (each.numpy() for each in served(torch.from_numpy(images[:count]))[:2])
    got = run_raw(session, images[:count])
    assert np.abs(got[0] - logits).max() <= 1e-4 * np.abs(logits).max()
    assert got[0] == pytest.approx(logits, abs=1e-4) and got[1] == pytest.approx(deltas, abs=1e-4)
    assert 1 / (1 + np.exp(-got[0])) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)


@pytest.mark.parametrize(("score", "iou", "most"), [(0.05, 0.5, 100), (0.15, 0.3, 7), (0.1, 0.7, 1000)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_detections_are_those_of_the_definition(
    net: RetinaNet, session: InferenceSession, images: Pixels, count: int, score: float, iou: float, most: int
) -> None:
    _, _, boxes, scores, classes, index = run(session, images[:count], score, iou, most)
    want = expected(net, images[:count], score, iou, most)
    flat = [(row, *one) for row, found in enumerate(want) for one in found]
    assert len(flat) > count and index.tolist() == [one[0] for one in flat]
    assert scores == pytest.approx(np.array([one[1] for one in flat]), abs=1e-5)
    # Scores of two classes can be equal but for the last digit: within each class the order is sure.
    mine = sorted(zip(index.tolist(), classes.tolist(), range(len(boxes)), strict=True))
    theirs = sorted((one[0], one[2], rank) for rank, one in enumerate(flat))
    assert [one[:2] for one in mine] == [one[:2] for one in theirs]
    there = np.array([flat[one[2]][3] for one in theirs])
    assert np.abs(boxes[[one[2] for one in mine]] - there).max() <= 0.01
    assert all(scores[k] >= scores[k + 1] for k in range(len(scores) - 1) if index[k] == index[k + 1])
    assert (scores > score).all() and np.bincount(index).max() <= most


def test_an_image_has_its_detections_whatever_its_batch(session: InferenceSession, images: Pixels) -> None:
    _, _, boxes, scores, classes, index = run(session, images)
    for row in (0, 4, 8):
        alone = run(session, images[row : row + 1])
        own = index == row
        assert np.allclose(boxes[own], alone[2], atol=1e-3) and np.allclose(scores[own], alone[3], atol=1e-6)
        assert classes[own].tolist() == alone[4].tolist()


@pytest.mark.parametrize(("score", "most"), [(0.9999999, 100), (0.05, 0)])
def test_nothing_found_is_an_empty_answer(session: InferenceSession, images: Pixels, score: float, most: int) -> None:
    for count in (1, 3):
        _, _, boxes, scores, classes, index = run(session, images[:count], score, 0.5, most)
        assert (boxes.shape, scores.shape, classes.shape, index.shape) == ((0, 4), (0,), (0,), (0,))


def test_only_some_images_of_a_batch_have_detections(session: InferenceSession, images: Pixels) -> None:
    scores, index = run(session, images)[3::2]
    best = np.array([scores[index == row].max() for row in range(len(images))])
    middle = float(np.median(best))
    again = run(session, images, score=middle)[5]
    assert sorted(set(again.tolist())) == np.flatnonzero(best > middle).tolist()


def test_what_is_not_fed_is_the_cards(session: InferenceSession, exported: Export, images: Pixels) -> None:
    detector = exported.card.detector
    assert detector is not None
    wanted = run(session, images, detector.score_threshold, detector.iou_threshold, detector.max_detections)
    for got, want in zip(session.run(ALL, {"image": images}), wanted, strict=True):
        assert np.array_equal(got, want)


def test_the_golden_pair_is_what_the_graph_answers(exported: Export, session: InferenceSession, images: Pixels) -> None:
    golden = exported.card.golden
    assert np.array_equal(decode_image(golden.png), images[0])
    logits, deltas = run_raw(session, images[:1])
    assert golden.logits == pytest.approx(logits[0].max(axis=0).tolist(), abs=0)
    assert golden.deltas == pytest.approx(deltas[0].mean(axis=0, dtype=np.float64).tolist(), abs=1e-12)
    stored = {each.key: each.value for each in onnx.load_from_string(exported.graph).metadata_props}
    assert ModelCard.parse(stored[METADATA_KEY], "graph") == exported.card
    assert 0.0 < exported.card.parity_max_difference < 1e-4


def test_no_logarithm_of_a_sigmoid_is_in_the_graph(exported: Export) -> None:
    kinds = {node.op_type for node in onnx.load_from_string(exported.graph).graph.node}
    assert "Sigmoid" in kinds and "NonMaxSuppression" in kinds and "Log" not in kinds


def test_one_class_and_another_shape(images: Pixels) -> None:
    torch.manual_seed(2)
    spec, size = plan_of("small").spec(), ImageInput(height=96, width=72)
    net = lively(build_detector("small", 1, spec, "frozen"))
    export = export_detector(net, facts(["tree"], spec, size), np.ascontiguousarray(images[:, :96, :72]))
    boxes, scores, classes, index = run(open_session(export.graph), np.ascontiguousarray(images[:, :96, :72]), 0.01)[2:]
    assert len(scores) > 0 and set(classes.tolist()) == {0} and index.tolist() == sorted(index.tolist())
    assert boxes.min() >= 0.0 and (boxes.max(axis=0) <= [72, 96, 72, 96]).all()


def test_a_graph_with_other_anchors_is_refused(
    net: RetinaNet, exported: Export, images: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "to_graph", lambda *_: None)
    monkeypatch.setattr(module, "_append_suppression", lambda *_: onnx.load_from_string(exported.graph))
    plan = plan_of("small").spec()
    levels = [level.model_copy(update={"sizes": [size + 2 for size in level.sizes]}) for level in plan.levels]
    other = plan.model_copy(update={"levels": levels})
    with pytest.raises(BundleError, match=re.escape("boxes are not those of its anchors")):
        export_detector(net, facts(["a", "b", "c"], other), images)


@pytest.mark.parametrize(("by", "said"), [(1e-2, r"0\.0\d+"), (float("nan"), "inf")])
def test_a_graph_that_differs_from_the_net_is_refused(
    net: RetinaNet, exported: Export, images: Pixels, monkeypatch: pytest.MonkeyPatch, by: float, said: str
) -> None:
    monkeypatch.setattr(module, "to_graph", lambda *_: None)
    monkeypatch.setattr(module, "_append_suppression", lambda *_: onnx.load_from_string(exported.graph))
    changed = plain_copy(net)
    assert isinstance(changed, RetinaNet)
    with torch.no_grad():
        changed.get_parameter("head.regression_head.bbox_reg.bias").add_(by)
    with pytest.raises(BundleError, match=rf"differ from torch's by {said}; 0\.0001 is allowed"):
        export_detector(changed, facts(["a", "b", "c"], plan_of("small").spec()), images)
