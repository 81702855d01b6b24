"""Wrong boxes are found on a trained detector: bars for every cause, beside ObjectLab; and the bench's own numbers."""

from functools import cache

import numpy as np
import pytest

from models.box_noise import BoxNoise, Way
from models.box_view import view_image
from models.boxes import make_anchors
from models.card import ModelCard
from models.detect import detector_of
from scripts.box_audit_bench import describe_issues
from scripts.box_trials import (
    Scene,
    Trial,
    average_precision,
    claim_boxes,
    detect,
    missing_precision,
    mixed_noise,
    precisions,
    run_trial,
    separate_noises,
    without_calibrator,
)
from scripts.label_checks import fit_calibrators
from scripts.objectlab_bench import calibrate_detections, fit_isotonic, objectlab_precisions
from tests import seen_scenes

SEED = 9


@cache
def stored() -> tuple[list[Scene], ModelCard]:
    return seen_scenes.load()


@cache
def mixed(calibrated: bool) -> Trial:
    scenes, card = stored()
    return run_trial(scenes, card if calibrated else without_calibrator(card), mixed_noise(card), SEED)


@pytest.mark.parametrize(
    ("kind", "least"), [("missing", 0.86), ("badly_located", 0.86), ("swapped", 0.82), ("spurious", 0.98)]
)
def test_each_kind_of_error_alone_comes_first(kind: str, least: float) -> None:
    scenes, card = stored()
    assert precisions(run_trial(scenes, card, separate_noises(card)[kind], SEED))[kind] >= least


@pytest.mark.parametrize(
    ("calibrated", "bars"),
    [
        (True, {"missing": 0.81, "badly_located": 0.70, "swapped": 0.79, "spurious": 0.97, "any": 0.86}),
        (False, {"missing": 0.81, "badly_located": 0.57, "swapped": 0.70, "spurious": 0.96, "any": 0.82}),
    ],
)
def test_each_kind_comes_before_all_others_where_they_are_mixed(calibrated: bool, bars: dict[str, float]) -> None:
    found = precisions(mixed(calibrated))
    assert {kind for kind, least in bars.items() if found[kind] < least} == set()


def test_objectlab_finds_far_fewer_even_at_its_best() -> None:
    scenes, card = stored()
    # Its scores are calibrated on the very scenes of the test: in its favour.
    seen, isotonic = [detect(one, card) for one in scenes], calibrate_detections(scenes, card)
    ours, found = precisions(mixed(True)), objectlab_precisions(mixed(True), seen, card, isotonic)
    assert all(ours[kind] >= best[kind] + 0.2 for best in found for kind in best)
    assert all(found[0][kind] <= found[1][kind] <= found[2][kind] for kind in found[0])


@cache
def fitted_on_half() -> ModelCard:
    """The card with calibrators as they are fitted at export, on the first 75 of the stored scenes."""
    scenes, card = stored()
    spec = detector_of(card)
    anchors = make_anchors(spec, card.input.height, card.input.width)
    views = (view_image(scene.cls_logits, scene.box_deltas, anchors) for scene in scenes[:75])
    size = (card.input.height, card.input.width)
    fitted = fit_calibrators(views, [scene.truth for scene in scenes[:75]], spec, size, len(card.labels))
    return card.model_copy(update={"detector": fitted})


@pytest.mark.parametrize(
    ("way", "least"), [("any", 0.86), ("moved", 0.89), ("resized", 0.9), ("side", 0.89), ("sides", 0.86)]
)
def test_badly_located_boxes_are_found_however_they_were_drawn(way: Way, least: float) -> None:
    scenes, noise = stored()[0][75:], BoxNoise(shift=0.1, ways=(way,))
    found = [precisions(run_trial(scenes, fitted_on_half(), noise, seed))["badly_located"] for seed in range(4)]
    assert np.mean(found) >= least


def missing_at_least(trial: Trial, least: float) -> tuple[int, int]:
    """How many missing objects score so much, and how many of these are the first upon a box that was dropped."""
    found = [one.missing for one in trial.scores]
    sure = [(one.xyxy[one.scores >= least], one.scores[one.scores >= least]) for one in found]
    hits = [claim_boxes(*rows, gone) for rows, gone in zip(sure, trial.dropped(), strict=True)]
    return sum(map(len, hits)), sum(int(hit.sum()) for hit in hits)


def test_a_fitted_score_finds_missing_objects_among_other_errors_far_better() -> None:
    scenes, card, noise = stored()[0][75:], fitted_on_half(), mixed_noise(stored()[1])
    fitted, plain = (
        [run_trial(scenes, each, noise, seed) for seed in range(4)] for each in (card, without_calibrator(card))
    )
    gains = [precisions(a)["missing"] - precisions(b)["missing"] for a, b in zip(fitted, plain, strict=True)]
    assert np.mean(gains) >= 0.06 and min(gains) >= 0.0
    seen, right = np.sum([missing_at_least(trial, 0.5) for trial in fitted], axis=0)
    gone = sum(len(box) for trial in fitted for box in trial.dropped())
    assert right / seen >= 0.75 and right / gone >= 0.7


def test_isotonic_scores_are_scikit_learns() -> None:
    regression = pytest.importorskip("sklearn.isotonic").IsotonicRegression(out_of_bounds="clip")
    rng = np.random.default_rng(4)
    scores = np.round(rng.uniform(0.05, 0.9, 400), 2)
    hits = (rng.random(400) < scores**2).astype(float)
    asked = np.linspace(0.0, 1.0, 101)
    assert np.allclose(fit_isotonic(scores, hits)(asked), regression.fit(scores, hits).predict(asked))


def test_issues_are_mostly_right_and_of_the_right_kind() -> None:
    found = describe_issues([mixed(True)])
    assert found["issues: precision"] >= 0.75 and found["issues: recall"] >= 0.6
    assert found["cause right, of found"] >= 0.9 and found["class right, of swapped"] >= 0.8


def test_the_plain_threshold_is_of_use_too() -> None:
    found = describe_issues([mixed(False)])
    assert found["issues: precision"] >= 0.75 and found["issues: recall"] >= 0.5
    assert found["cause right, of found"] >= 0.85


def test_hardly_a_sound_box_is_an_issue() -> None:
    scenes, card = stored()
    assert run_trial(scenes, card, BoxNoise(), SEED).column("is_issue").mean() <= 0.03


def test_a_dropped_box_is_found_once_and_one_that_is_never_found_counts() -> None:
    box, other = np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[50.0, 50.0, 60.0, 60.0]])
    twice = np.concatenate([box, box]), np.array([0.9, 0.8])
    assert missing_precision([twice], [box]) == 1.0
    assert missing_precision([twice], [np.concatenate([box, other])]) == 0.5
    assert missing_precision([(box, np.array([0.9]))], [other]) == 0.0


def test_average_precision_is_the_mean_of_the_precisions_at_the_finds() -> None:
    wrong = np.array([True, False, True])
    assert average_precision(wrong, np.array([3.0, 2.0, 1.0])) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(np.zeros(2, bool), np.zeros(2)))
