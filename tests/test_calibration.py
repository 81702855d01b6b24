"""Focal loss's bias is undone exactly, the temperature is found, and the error of calibration is counted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.calibration import (
    calibrate,
    expected_calibration_error,
    fit_temperature,
    focal_inverse,
    log_sigmoid,
    log_softmax,
    probabilities,
    softmax_row,
)
from models.card import Calibration

Floats = NDArray[np.float64]
GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0]
PUBLISHED = [(0.8, 0.62661483), (0.95, 0.74978877)]  # class posterior, minimiser of the focal loss of gamma 2
POSTERIORS = [[0.8, 0.2], [0.95, 0.05], [0.5, 0.5], [0.6, 0.3, 0.1], [0.4, 0.3, 0.2, 0.1]]

logits = st.floats(-1e4, 1e4)
gammas = st.floats(0.0, 10.0)


def focal_risk_slope(p: float, gamma: float) -> float:
    """d/dp of the focal loss -(1 - p)^gamma log p."""
    return float(gamma * (1.0 - p) ** (gamma - 1.0) * math.log(p) - (1.0 - p) ** gamma / p)


def bisect(slope_at: float, gamma: float) -> float:
    """The p in (0, 1) whose slope is `slope_at`; the slope rises with p."""
    low, high = 1e-12, 1.0 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2.0
        low, high = (middle, high) if focal_risk_slope(middle, gamma) < slope_at else (low, middle)
    return (low + high) / 2.0


def focal_minimiser(posterior: list[float], gamma: float) -> Floats:
    """The p on the simplex that minimises sum_k posterior_k * FL(p_k): by its Lagrange conditions, by bisection."""
    low, high = -1e6, -1e-9  # of the multiplier: posterior_k * FL'(p_k) is the same number for every k
    for _ in range(200):
        multiplier = (low + high) / 2.0
        p = np.array([bisect(multiplier / eta, gamma) for eta in posterior])
        low, high = (multiplier, high) if p.sum() < 1.0 else (low, multiplier)
    return p


def nll(p: Floats, targets: NDArray[np.intp]) -> float:
    return float(-np.log(p[np.arange(len(p)), targets]).mean())


def sample(temperature: float, count: int = 20_000, classes: int = 3) -> tuple[Floats, NDArray[np.intp]]:
    """Logits that are `temperature` times too large, with labels drawn from the probabilities they should give."""
    rng = np.random.default_rng(0)
    z = rng.normal(0.0, 2.0, (count, classes))
    return z * temperature, (np.exp(log_softmax(z)).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)


@pytest.mark.parametrize(("posterior", "minimiser"), PUBLISHED)
def test_the_inverse_has_the_published_values_at_gamma_2(posterior: float, minimiser: float) -> None:
    found = focal_inverse(np.array([[minimiser, 1.0 - minimiser]]), 2.0)
    assert found[0] == pytest.approx([posterior, 1.0 - posterior], abs=5e-8)


@pytest.mark.parametrize("gamma", GAMMAS[1:])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_inverse_turns_the_minimiser_into_the_class_posterior(posterior: list[float], gamma: float) -> None:
    minimiser = focal_minimiser(posterior, gamma)
    assert minimiser.sum() == pytest.approx(1.0, abs=1e-9)
    assert focal_inverse(minimiser[None], gamma)[0] == pytest.approx(posterior, abs=1e-7)


def test_focal_loss_makes_the_minimiser_less_confident_than_the_posterior() -> None:
    assert focal_minimiser([0.8, 0.2], 2.0)[0] == pytest.approx(0.62661483, abs=5e-9)


@given(st.lists(logits, min_size=2, max_size=6), gammas)
def test_softmax_probabilities_are_finite_and_sum_to_1(row: list[float], gamma: float) -> None:
    p = probabilities(np.array([row]), "softmax", Calibration(gamma=gamma, temperature=0.7))
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p.min() >= 0.0


@given(st.lists(logits, min_size=1, max_size=6), gammas)
def test_sigmoid_probabilities_are_finite_and_in_range(row: list[float], gamma: float) -> None:
    p = probabilities(np.array([row]), "sigmoid", Calibration(gamma=gamma, temperature=0.7))
    assert p.shape == (1, len(row))
    assert ((p >= 0.0) & (p <= 1.0)).all()


@given(logits, gammas, st.floats(0.05, 20.0))
def test_sigmoid_is_the_softmax_of_two_classes(z: float, gamma: float, temperature: float) -> None:
    calibration = Calibration(gamma=gamma, temperature=temperature)
    two = probabilities(np.array([[0.0, z]]), "softmax", calibration)[0, 1]
    assert probabilities(np.array([[z]]), "sigmoid", calibration)[0, 0] == pytest.approx(two, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("z", [-20.0, -40.0, -300.0, -695.0, -1e3, -1e4])
@pytest.mark.parametrize("gamma", [0.5, 2.0, 10.0])
def test_the_inverse_is_exact_where_a_probability_has_rounded_to_1(z: float, gamma: float) -> None:
    """There the log-odds z become z * (1 + gamma) + log(1 + gamma); a large temperature brings them within reach."""
    p = probabilities(np.array([[0.0, z]]), "softmax", Calibration(gamma=gamma, temperature=1000.0))[0]
    assert 1000.0 * np.log(p[1] / p[0]) == pytest.approx(z * (1.0 + gamma) + math.log(1.0 + gamma), abs=1e-5)


@given(logits, st.floats(0.0, 50.0), gammas)
def test_a_larger_logit_never_has_a_smaller_probability(z: float, step: float, gamma: float) -> None:
    calibration = Calibration(gamma=gamma, temperature=20.0)
    for activation, rows in (("sigmoid", [[z], [z + step]]), ("softmax", [[z, 0.0, 1.0], [z + step, 0.0, 1.0]])):
        low, high = probabilities(np.array(rows), activation, calibration)[:, 0]
        assert high >= low * (1.0 - 1e-9)


@given(st.lists(logits, min_size=2, max_size=5, unique=True), gammas)
def test_the_inverse_keeps_the_order_of_the_classes(row: list[float], gamma: float) -> None:
    rounded = np.round(np.array([row]), 3)
    p = probabilities(rounded, "softmax", Calibration(gamma=gamma))[0]
    ordered = p[np.argsort(rounded[0], kind="stable")]
    assert (np.diff(ordered) >= -1e-12).all()


@given(st.lists(st.lists(logits, min_size=3, max_size=3), min_size=2, max_size=5), gammas)
def test_a_row_does_not_depend_on_its_batch(rows: list[list[float]], gamma: float) -> None:
    calibration = Calibration(gamma=gamma, temperature=1.3)
    for activation in ("softmax", "sigmoid"):
        whole = probabilities(np.array(rows), activation, calibration)
        parts = [probabilities(np.array([row]), activation, calibration)[0] for row in rows]
        assert np.array_equal(whole, np.array(parts))


@given(st.lists(logits | st.floats(-5.0, 5.0), min_size=2, max_size=12), gammas, st.floats(0.05, 1000.0))
def test_a_row_in_pythons_floats_is_that_of_numpy(row: list[float], gamma: float, temperature: float) -> None:
    calibration = Calibration(gamma=gamma, temperature=temperature)
    want = probabilities(np.array([row]), "softmax", calibration)[0]
    assert softmax_row(row, calibration) == pytest.approx(want.tolist(), rel=1e-9, abs=1e-300)


def test_without_gamma_and_temperature_they_are_softmax_and_sigmoid() -> None:
    z = np.array([[1.0, -2.0, 0.5]])
    assert probabilities(z, "softmax", Calibration())[0] == pytest.approx(np.exp(z[0]) / np.exp(z[0]).sum())
    assert probabilities(z, "sigmoid", Calibration())[0] == pytest.approx(1.0 / (1.0 + np.exp(-z[0])))


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_log_probabilities_are_finite_for_any_finite_logit(scale: float) -> None:
    z = np.array([[0.0, scale, -scale]])
    assert np.isfinite(log_softmax(z)).all()
    assert np.isfinite(log_sigmoid(z)).all()
    assert log_sigmoid(np.array([-scale]))[0] == pytest.approx(-scale, rel=0.4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrate_finds_the_temperature_of_a_softmax(temperature: float) -> None:
    z, targets = sample(temperature)
    found = calibrate(z, targets, "softmax", 0.0)
    assert found.gamma == 0.0
    assert found.temperature == pytest.approx(temperature, rel=0.03)


def test_calibrate_finds_the_temperature_of_sigmoids() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0.0, 2.0, (10_000, 2))
    present = (rng.random(z.shape) < np.exp(log_sigmoid(z))).astype(np.float64)
    assert calibrate(z * 2.0, present, "sigmoid", 0.0).temperature == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_minimisers_of_the_focal_loss_need_no_temperature(gamma: float) -> None:
    posterior = [0.6, 0.3, 0.1]
    rows = np.tile(np.log(focal_minimiser(posterior, gamma)), (1000, 1))
    targets = np.repeat([0, 1, 2], [600, 300, 100])
    found = calibrate(rows, targets, "softmax", gamma)
    assert found.temperature == pytest.approx(1.0, abs=1e-5)
    assert probabilities(rows[:1], "softmax", found)[0] == pytest.approx(posterior, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_fitted_temperature_lowers_the_loss_and_the_calibration_error(gamma: float) -> None:
    z, targets = sample(3.0)
    before = probabilities(z, "softmax", Calibration(gamma=gamma))
    after = probabilities(z, "softmax", calibrate(z, targets, "softmax", gamma))
    assert nll(after, targets) < nll(before, targets)
    errors = [expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == targets) for p in (before, after)]
    assert errors[1] < errors[0]


def test_a_temperature_stays_between_its_bounds() -> None:
    assert fit_temperature(lambda temperature: temperature) == pytest.approx(0.05)
    assert fit_temperature(lambda temperature: -temperature) == pytest.approx(20.0)
    assert fit_temperature(lambda temperature: (math.log(temperature) - 1.0) ** 2) == pytest.approx(math.e)


def test_the_error_of_a_perfect_calibration_is_0() -> None:
    p = np.repeat([0.25, 0.75, 1.0], [4, 4, 5])
    correct = np.array([1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], np.bool_)
    assert expected_calibration_error(p, correct) == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_a_known_case() -> None:
    """Half of the samples are 0.9 sure and right half of the time, half are 0.3 sure and never right."""
    p, correct = np.repeat([0.9, 0.3], 10), np.tile([True, False], 5).tolist() + [False] * 10
    assert expected_calibration_error(p, np.array(correct)) == pytest.approx(0.5 * 0.4 + 0.5 * 0.3)
    assert expected_calibration_error(np.zeros(0), np.zeros(0, np.bool_)) == 0.0
