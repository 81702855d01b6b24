"""From signs to causes: the calibrator's fit, its use, and what is said without one."""

import dataclasses
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from models.box_causes import (
    BADLY_LOCATED,
    CAUSES,
    FEATURES,
    NONE,
    SIGNS,
    SPURIOUS,
    SWAPPED,
    UNFITTED_THRESHOLD,
    apply_calibrator,
    box_features,
    fit_calibrator,
    judge_boxes,
)
from models.box_quality import BoxSigns
from models.boxes import Floats
from models.detector_spec import BoxCalibrator
from models.errors import BundleError, InvalidInput
from models.losses import binary_margin_focal
from tests.fake_detector import average_precision, boxes_of, make_scene, signs_of, spoil

Causes = NDArray[np.int64]


def spoilt_boxes(seeds: range, classes: int = 5) -> tuple[BoxSigns, Causes]:
    """Signs of the boxes of many scenes, and what is wrong with each."""
    parts = list[BoxSigns]()
    causes = list[Causes]()
    for seed in seeds:
        scene = make_scene(seed, classes)
        noisy = spoil(scene, seed, classes)
        parts.append(signs_of(scene, noisy.labels))
        causes.append(noisy.causes)
    joined = [np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(BoxSigns)]
    return BoxSigns(*joined), np.concatenate(causes)


@pytest.fixture(scope="module")
def known() -> tuple[BoxSigns, Causes]:
    return spoilt_boxes(range(1000, 1120))


@pytest.fixture(scope="module")
def fresh() -> tuple[BoxSigns, Causes]:
    return spoilt_boxes(range(80))


@pytest.fixture(scope="module")
def calibrator(known: tuple[BoxSigns, Causes]) -> BoxCalibrator:
    return fit_calibrator(box_features(known[0]), known[1])


def test_features_are_signs_their_logarithms_and_products(fresh: tuple[BoxSigns, Causes]) -> None:
    signs = fresh[0]
    columns = dict(zip(FEATURES, box_features(signs).T, strict=True))
    assert set(SIGNS) <= {field.name for field in fields(BoxSigns)}
    assert np.array_equal(columns["focal"], signs.focal)
    assert np.allclose(columns["log near"], np.log(signs.near + 1e-4))
    assert np.allclose(columns["pull * own"], signs.pull * signs.own)


def test_the_calibrator_finds_each_cause_better_than_any_plain_score(
    fresh: tuple[BoxSigns, Causes], calibrator: BoxCalibrator
) -> None:
    signs, causes = fresh
    p = apply_calibrator(calibrator, signs)
    for cause, least in ((BADLY_LOCATED, 0.95), (SWAPPED, 0.85), (SPURIOUS, 0.97)):
        assert average_precision(causes == cause, p[:, cause]) > least, CAUSES[cause]
    fitted, plain = average_precision(causes != NONE, 1.0 - p[:, NONE]), average_precision(causes != NONE, signs.focal)
    assert fitted > 0.93 and fitted > plain


def test_probabilities_sum_to_one_and_are_honest(fresh: tuple[BoxSigns, Causes], calibrator: BoxCalibrator) -> None:
    p = apply_calibrator(calibrator, fresh[0])
    assert np.allclose(p.sum(axis=1), 1.0) and (p >= 0.0).all()
    assert p[:, NONE].mean() == pytest.approx((fresh[1] == NONE).mean(), abs=0.03)


def test_the_fit_is_the_maximum_of_its_likelihood(known: tuple[BoxSigns, Causes], calibrator: BoxCalibrator) -> None:
    x = (box_features(known[0]) - np.asarray(calibrator.mean)) / np.asarray(calibrator.scale)
    weights = np.asarray(calibrator.weights)
    p = apply_calibrator(calibrator, known[0])
    y = known[1][:, None] == np.arange(4)
    assert np.abs(x.T @ (p - y) + weights).max() < 0.05
    assert np.abs((p - y).sum(axis=0)).max() < 0.05


def test_the_fit_is_scikit_learns(known: tuple[BoxSigns, Causes], calibrator: BoxCalibrator) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x = (box_features(known[0]) - np.asarray(calibrator.mean)) / np.asarray(calibrator.scale)
    theirs = linear.LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(x, known[1])
    assert np.allclose(theirs.predict_proba(x), apply_calibrator(calibrator, known[0]), atol=2e-3)


def test_the_fit_ends_where_the_classes_can_be_told_apart_without_error() -> None:
    x = np.repeat(np.eye(4), 5, axis=0) * 100.0
    features = np.zeros((20, len(FEATURES)))
    features[:, :4] = x
    fitted = fit_calibrator(features, np.repeat(np.arange(4), 5), strength=1e-3)
    assert np.isfinite(fitted.weights).all() and np.isfinite(fitted.bias).all()


def test_the_shares_that_are_expected_move_the_odds_and_nothing_else(
    known: tuple[BoxSigns, Causes], fresh: tuple[BoxSigns, Causes], calibrator: BoxCalibrator
) -> None:
    expected = [0.97, 0.01, 0.005, 0.015]
    moved = fit_calibrator(box_features(known[0]), known[1], expected=expected)
    shares = np.bincount(known[1], minlength=4) / len(known[1])
    want = apply_calibrator(calibrator, fresh[0]) * np.array(expected) / shares
    assert np.allclose(apply_calibrator(moved, fresh[0]), want / want.sum(axis=1, keepdims=True), atol=1e-9)


def test_a_single_class_gives_a_calibrator_without_swaps() -> None:
    signs, causes = spoilt_boxes(range(60), classes=1)
    fitted = fit_calibrator(box_features(signs), causes)
    assert fitted.causes == ["none", "badly_located", "spurious"]
    p = apply_calibrator(fitted, signs)
    assert not p[:, SWAPPED].any() and np.allclose(p.sum(axis=1), 1.0)


@pytest.mark.parametrize("only", [NONE, SPURIOUS])
def test_one_kind_of_boxes_is_not_enough(only: int) -> None:
    with pytest.raises(InvalidInput, match="one kind is absent"):
        fit_calibrator(np.zeros((5, len(FEATURES))), np.full(5, only))


def test_a_calibrator_of_another_version_is_refused(fresh: tuple[BoxSigns, Causes], calibrator: BoxCalibrator) -> None:
    odd = calibrator.model_copy(update={"features": ["sharpness", *calibrator.features[1:]]})
    with pytest.raises(BundleError, match="no feature 'sharpness'"):
        judge_boxes(fresh[0], odd)
    with pytest.raises(BundleError, match="no cause 'stolen'"):
        judge_boxes(fresh[0], calibrator.model_copy(update={"causes": ["none", "stolen", "swapped", "spurious"]}))


def test_a_calibrator_may_weigh_a_few_features_in_any_order(fresh: tuple[BoxSigns, Causes]) -> None:
    few = BoxCalibrator(
        causes=["none", "spurious"],
        features=["spurious", "focal"],
        mean=[0.5, 0.0],
        scale=[0.1, 1.0],
        weights=[[0.0, 2.0], [0.0, 0.0]],
        bias=[0.0, 0.0],
    )
    want = 1.0 / (1.0 + np.exp(-20.0 * (fresh[0].spurious - 0.5)))
    assert np.allclose(apply_calibrator(few, fresh[0])[:, SPURIOUS], want)


def test_with_a_calibrator_an_issue_is_less_than_even_and_its_cause_the_likeliest(
    fresh: tuple[BoxSigns, Causes], calibrator: BoxCalibrator
) -> None:
    found = judge_boxes(fresh[0], calibrator)
    assert np.array_equal(found.is_issue, found.causes[:, NONE] < 0.5)
    assert np.array_equal(found.cause != NONE, found.is_issue)
    issues = found.is_issue
    assert np.array_equal(found.cause[issues], 1 + found.causes[issues, 1:].argmax(axis=1))
    assert (found.cause == fresh[1])[fresh[1] != NONE].mean() > 0.8


def test_without_one_the_quality_is_the_probability_that_has_this_focal_loss(
    fresh: tuple[BoxSigns, Causes],
) -> None:
    found = judge_boxes(fresh[0], None)
    odds = np.log(found.quality / (1.0 - found.quality))
    assert np.allclose(binary_margin_focal(odds, 2.0), fresh[0].focal, rtol=1e-6, atol=1e-12)
    assert np.array_equal(np.argsort(found.quality), np.argsort(-fresh[0].focal))
    assert np.array_equal(found.is_issue, fresh[0].focal > binary_margin_focal(np.log(1 / 9), 2.0))
    assert UNFITTED_THRESHOLD == 0.1


def test_without_one_the_causes_of_issues_are_mostly_right(fresh: tuple[BoxSigns, Causes]) -> None:
    found = judge_boxes(fresh[0], None)
    wrong = found.is_issue & (fresh[1] != NONE)
    assert wrong.sum() > 20 and (found.cause == fresh[1])[wrong].mean() > 0.8
    assert ((found.causes >= 0.0) & (found.causes <= 1.0)).all()


def test_a_hopeless_box_has_quality_zero_and_no_boxes_are_no_trouble(calibrator: BoxCalibrator) -> None:
    signs = signs_of(make_scene(1), make_scene(1).truth)
    hopeless = dataclasses.replace(signs, focal=np.full_like(signs.focal, 1e4))
    assert judge_boxes(hopeless, None).quality == pytest.approx(np.zeros(len(signs.focal)))
    none: Floats = judge_boxes(signs_of(make_scene(1), boxes_of([], [])), calibrator).causes
    assert none.shape == (0, 4)
