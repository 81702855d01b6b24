"""The loss graph on the CPU: the golden losses, and what numpy says of the same logits, whatever is asked."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from models.bundle import LOSS_FILE, METADATA_KEY, Bundle, read_bundle, write_bundle
from models.card import ModelCard
from models.class_logits import NO_CLASS, HostLogits
from models.detect import BoxScores, Detection, Geometry
from models.errors import BundleError, InvalidInput
from models.nets.loss_graph import build_loss_graph
from models.task import ScoreOptions
from service.box_answers import GivenBoxes, score_picture
from service.detector import DetectorEngine, Raw
from service.errors import InferenceFailed
from service.loss_graph import DeviceLogits, LossGraph
from tests.fake_detector import boxes_of, detector_card, make_scene
from tests.golden import Case, assert_close, cases

RTOL, ATOL = 1e-5, 1e-37
GOLDEN = [
    case
    for case in cases()
    if case.kind == "sigmoid"
    and case.soft == "expected"
    and case.targets.dtype.kind == "i"
    and case.reduction == "none"
]
OPTIONS = [ScoreOptions(2.0, None), ScoreOptions(0.5, 0.25, label_smoothing=0.1, ignore_index=4)]
CARD = detector_card(list("abcde"))
GIVEN = {
    "truth": make_scene(4).truth,
    "one wrong class": boxes_of(make_scene(4).truth.xyxy, (make_scene(4).truth.labels + 1) % 5),
    "a crowd and an ignored class": boxes_of(
        [[5, 5, 60, 70], [70, 20, 120, 88], [9, 60, 50, 99]], [0, 1, 4], [1, 0, 0]
    ),
    "nothing": boxes_of([], []),
}


@pytest.fixture(scope="module")
def graph() -> LossGraph:
    return LossGraph(build_loss_graph(), "cpu", 1)


def on_device(graph: LossGraph, logits: NDArray[Any], image: int = 0) -> DeviceLogits:
    """Of logits (N, A, K)."""
    return DeviceLogits(graph, ort.OrtValue.ortvalue_from_numpy(np.asarray(logits, np.float32)), image)


def extreme(classes: int) -> NDArray[np.float32]:
    """Logits (A, K) of all sizes, up to 10,000."""
    sizes = np.array([0.0, 1e-3, 0.5, 3, 9, 12, 16.7, 17, 20, 30, 88, 100, 104, 1e3, 1e4], np.float32)
    return np.random.default_rng(3).permuted(np.tile(np.concatenate([sizes, -sizes])[:, None], classes), axis=0)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in GOLDEN])
def test_a_golden_case_is_met(graph: LossGraph, case: Case) -> None:
    """Each element is an anchor of a detector of one class; a row with class weights is an anchor of several."""
    want = np.asarray(case.expected["loss"], np.float64)
    if isinstance(case.alpha, list):
        logits, hot = case.logits, case.targets == 1
        kept = np.flatnonzero(hot.sum(axis=1) <= 1)
        classes = np.where(hot.any(axis=1), hot.argmax(axis=1), NO_CLASS)
        want = want.sum(axis=1)
        assert len(kept)
    else:
        logits, targets, want = case.logits.reshape(-1, 1), case.targets.ravel(), want.ravel()
        kept, classes = np.flatnonzero(targets != case.ignore_index), np.where(targets == 1, 0, NO_CLASS)
    got = on_device(graph, logits[None]).focal(kept, classes[kept], case.gamma, case.alpha, case.smoothing)
    assert_close(got, want[kept], RTOL, ATOL, "loss")


def test_there_are_golden_cases_of_every_kind() -> None:
    assert len(GOLDEN) >= 60 and {case.gamma for case in GOLDEN} >= {0.0, 0.5, 2.0, 5.0}
    assert any(isinstance(case.alpha, list) for case in GOLDEN) and any(case.smoothing for case in GOLDEN)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, 0.25, "list"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("classes", [1, 5])
def test_every_loss_is_numpys_at_any_logit(
    graph: LossGraph, classes: int, gamma: float, alpha: Any, smoothing: float
) -> None:
    alpha = np.linspace(0.1, 0.9, classes).tolist() if alpha == "list" else alpha
    logits = extreme(classes)
    anchors = np.tile(np.arange(len(logits)), classes + 1)
    given = np.repeat(np.arange(NO_CLASS, classes), len(logits))
    got, want = (
        one.focal(anchors, given, gamma, alpha, smoothing)
        for one in (on_device(graph, logits[None]), HostLogits(logits))
    )
    assert got.dtype == want.dtype == np.float64
    assert_close(got, want, RTOL, ATOL, "loss")


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_what_else_is_asked_of_the_logits_is_what_numpy_says(graph: LossGraph, classes: int) -> None:
    logits = extreme(classes)
    here, there = HostLogits(logits), on_device(graph, np.stack([logits[::-1], logits]), 1)
    assert there.shape == here.shape and there.is_finite and here.is_finite
    assert there.summary.top.tolist() == here.summary.top.tolist()
    assert there.summary.best.tolist() == here.summary.best.tolist()
    assert_close(there.summary.nothing, here.summary.nothing, RTOL, ATOL, "nothing")
    if classes == 1:
        assert (np.exp(np.minimum(there.summary.second, 0.0)) == 0.0).all()
    else:
        assert there.summary.second.tolist() == here.summary.second.tolist()
    some, given = np.array([7, 0, 7, 3]), np.array([0, classes - 1, classes - 1, 0])
    assert there.rows(some).tolist() == here.rows(some).tolist()
    assert there.of_classes(some, given).tolist() == here.of_classes(some, given).tolist()
    none = np.zeros(0, np.int64)
    assert there.rows(none).shape == (0, classes)
    assert there.of_classes(none, none).shape == there.focal(none, none, 2.0, None, 0.0).shape == (0,)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_found_and_spoils_no_other_image(graph: LossGraph, wrong: float) -> None:
    logits = np.stack([extreme(3)] * 2)
    logits[1, 4, 2] = wrong
    assert on_device(graph, logits, 0).is_finite and not on_device(graph, logits, 1).is_finite
    assert not HostLogits(logits[1]).is_finite


def test_an_image_is_the_same_in_any_batch(graph: LossGraph) -> None:
    logits = np.random.default_rng(0).normal(-3, 3, (4, 500, 5)).astype(np.float32)
    anchors, classes = np.arange(500), np.random.default_rng(1).integers(NO_CLASS, 5, 500)
    for image in range(4):
        alone, among = on_device(graph, logits[image : image + 1]), on_device(graph, logits, image)
        asked = anchors, classes, 2.0, 0.25, 0.0
        assert alone.focal(*asked).tolist() == among.focal(*asked).tolist()
        assert alone.summary.nothing.tolist() == among.summary.nothing.tolist()


@pytest.mark.parametrize(
    ("gamma", "alpha", "smoothing"), [(-1.0, None, 0.0), (2.0, 1.5, 0.0), (2.0, [0.5], 0.0), (2.0, None, 2.0)]
)
def test_a_parameter_out_of_its_range_is_refused_as_by_numpy(
    graph: LossGraph, gamma: float, alpha: Any, smoothing: float
) -> None:
    row, given = np.zeros(1, np.int64), np.zeros(1, np.int64)
    said = []
    for one in (on_device(graph, extreme(5)[None]), HostLogits(extreme(5))):
        with pytest.raises(InvalidInput) as caught:
            one.focal(row, given, gamma, alpha, smoothing)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_loss_beyond_float32_is_an_error_not_a_number(graph: LossGraph) -> None:
    logits = np.full((1, 1, 4), 3e38, np.float32)
    with pytest.raises(InferenceFailed, match="overflows"):
        on_device(graph, logits).focal(np.zeros(1, np.int64), np.array([NO_CLASS]), 2.0, None, 0.0)
    scene, same = make_scene(4), Geometry((1.0, 1.0), (0.0, 0.0), 128, 128)
    raw = Raw(on_device(graph, np.full((1, *scene.cls_logits.shape), 3e38)), scene.box_deltas, same)
    found = score_picture(CARD, raw, GivenBoxes(GIVEN["nothing"]), OPTIONS[0])
    assert isinstance(found, InferenceFailed)


@pytest.mark.parametrize(
    "options", [ScoreOptions(2.0, None), ScoreOptions(0.5, 0.25, label_smoothing=0.1, ignore_index=4)]
)
@pytest.mark.parametrize("name", GIVEN)
def test_given_boxes_score_as_with_numpy(graph: LossGraph, name: str, options: ScoreOptions) -> None:
    scene, same = make_scene(4), Geometry((1.0, 1.0), (0.0, 0.0), 128, 128)
    there, here = (
        Detection().score(logits, scene.box_deltas, GIVEN[name], same, CARD, options)
        for logits in (on_device(graph, scene.cls_logits[None]), HostLogits(scene.cls_logits))
    )
    same_scores(there, here)
    assert here.valid.any() == (name != "nothing")


def same_scores(got: BoxScores, want: BoxScores) -> None:
    assert got.loss.value == pytest.approx(want.loss.value, rel=RTOL)
    assert got.loss.classification == pytest.approx(want.loss.classification, rel=RTOL)
    assert (got.loss.location, got.loss.positives, got.loss.counted) == (
        want.loss.location,
        want.loss.positives,
        want.loss.counted,
    )
    for exact in ("valid", "is_issue", "cause", "suggested_labels", "best_iou"):
        assert np.array_equal(getattr(got, exact), getattr(want, exact)), exact
    for near in ("losses", "quality", "causes", "suggested_boxes"):
        assert np.allclose(getattr(got, near), getattr(want, near), rtol=RTOL, atol=1e-30, equal_nan=True), near
    assert np.array_equal(got.missing.xyxy, want.missing.xyxy)
    assert np.array_equal(got.missing.scores, want.missing.scores)


def naive_losses() -> bytes:
    """A loss graph with log(1 + e) as it stands, which is 0 for easy anchors."""
    model = onnx.load_from_string(build_loss_graph())
    (tail,) = (node for node in model.graph.node if "tail" in node.output)
    tail.CopyFrom(onnx.helper.make_node("Identity", ["log_u"], ["tail"]))
    data: bytes = model.SerializeToString()
    return data


def test_what_is_no_loss_graph_is_refused_by_name(detector_artifacts: Path) -> None:
    with pytest.raises(BundleError, match=r"loss\.onnx: ONNX Runtime cannot load it"):
        LossGraph(build_loss_graph()[:-40], "cpu", 1)
    with pytest.raises(BundleError, match=r"loss\.onnx: the inputs are not those of a loss graph"):
        LossGraph(read_bundle(detector_artifacts / "scenes" / "1").graph, "cpu", 1)
    with pytest.raises(BundleError, match=r"loss\.onnx: its losses are not those of the focal loss"):
        LossGraph(naive_losses(), "cpu", 1)


def signed(bundle: Bundle, loss_graph: bytes | None) -> Bundle:
    """A bundle with another loss graph, or none, as if it had been exported so."""
    sha256 = None if loss_graph is None else hashlib.sha256(loss_graph).hexdigest()
    card = bundle.card.model_copy(update={"loss_graph_sha256": sha256})
    model = onnx.load_from_string(bundle.graph)
    kept = card.model_copy(update={"sha256": None}).model_dump(exclude=None if sha256 else {"loss_graph_sha256"})
    onnx.helper.set_model_props(model, {METADATA_KEY: ModelCard.model_validate(kept).model_dump_json()})
    return Bundle(card, model.SerializeToString(), loss_graph)


def test_a_bundle_is_read_back_with_its_loss_graph_or_refused(detector_artifacts: Path, tmp_path: Path) -> None:
    bundle = read_bundle(detector_artifacts / "scenes" / "1")
    assert bundle.loss_graph == build_loss_graph()
    folder = write_bundle(tmp_path / "scenes", bundle.card, bundle.graph, bundle.loss_graph)
    (folder / LOSS_FILE).write_bytes(build_loss_graph() + b"\0")
    with pytest.raises(BundleError, match=r"1/loss\.onnx: the file has changed since export"):
        read_bundle(folder)
    (folder / LOSS_FILE).unlink()
    with pytest.raises(BundleError, match=r"1/loss\.onnx: no such file"):
        read_bundle(folder)
    for wrong in (None, naive_losses()):
        with pytest.raises(BundleError, match=r"loss\.onnx: the loss graph is not the one that the card names"):
            write_bundle(tmp_path / "other", bundle.card, bundle.graph, wrong)
    with pytest.raises(BundleError, match=r"loss\.onnx: its losses"):
        DetectorEngine(signed(bundle, naive_losses()), "cpu", 1)


def test_a_classifiers_card_names_no_loss_graph(bundle_folder: Path) -> None:
    card = read_bundle(bundle_folder).card.model_dump() | {"loss_graph_sha256": "0" * 64}
    with pytest.raises(ValueError, match="loss_graph_sha256 is of detectors"):
        ModelCard.model_validate(card)


def test_another_cards_loss_graph_is_noticed(detector_artifacts: Path) -> None:
    bundle = read_bundle(detector_artifacts / "scenes" / "1")
    bare = Bundle(bundle.card.model_copy(update={"loss_graph_sha256": None}), bundle.graph)
    with pytest.raises(BundleError, match="loss_graph_sha256 differ"):
        DetectorEngine(bare, "cpu", 1)
