"""Wrong boxes are found on a trained detector: bars for every cause, beside ObjectLab; and the bench's own numbers."""

from functools import cache

import numpy as np
import pytest

from models.box_noise import BoxNoise
from models.card import ModelCard
from scripts.box_audit_bench import (
    Scene,
    Trial,
    average_precision,
    describe_issues,
    detect,
    missing_precision,
    mixed_noise,
    objectlab_precisions,
    precisions,
    run_trial,
    separate_noises,
    without_calibrator,
)
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
    ours, best = precisions(mixed(True)), objectlab_precisions(mixed(True), [detect(one, card) for one in scenes])[1]
    assert all(ours[kind] >= best[kind] + 0.2 for kind in best)


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
