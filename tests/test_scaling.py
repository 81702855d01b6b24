"""Vector scaling: the maximum of its likelihood, and no change where none is due."""

import numpy as np
import pytest

from models.scaling import VectorScaling, fit_vector_scaling
from tests.noisy import Floats, Indices, draw, load


def likelihood(p: Floats, given: Indices) -> float:
    return float(np.log(p[np.arange(len(given)), given]).mean())


def test_no_scaling_is_none() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    assert VectorScaling(1.0, np.zeros(4)).apply(p) == pytest.approx(p)


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_a_known_distortion_is_found_again(classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth = rng.dirichlet(np.full(classes, 0.3), 40_000)
    given = draw(rng, truth)
    biases = rng.normal(0.0, 0.5, classes)
    distorted = VectorScaling(2.0, biases).apply(truth)
    found = fit_vector_scaling(distorted, given)
    assert found.temperature == pytest.approx(0.5, rel=0.1)  # the penalty draws it to 1
    assert np.abs(found.apply(distorted) - truth).mean() < 0.1 / classes


def test_the_fit_is_a_maximum_and_its_mean_is_that_of_the_labels() -> None:
    cell = load("lt_pair_10")
    found = fit_vector_scaling(cell.p, cell.given)
    scaled = found.apply(cell.p)
    best = likelihood(scaled, cell.given)
    assert best >= likelihood(cell.p, cell.given)
    for change in (0.9, 1.1):
        other = VectorScaling(found.temperature * change, found.biases)
        assert likelihood(other.apply(cell.p), cell.given) < best
    shares = np.bincount(cell.given, minlength=10) / len(cell.given)
    assert np.abs(scaled.mean(axis=0) - shares).max() < 2e-3  # the penalty holds it back a little


def test_the_order_of_the_rows_changes_nothing() -> None:
    cell = load("bal_sym_10")
    order = np.random.default_rng(0).permutation(len(cell.given))
    one, other = fit_vector_scaling(cell.p, cell.given), fit_vector_scaling(cell.p[order], cell.given[order])
    assert one.temperature == pytest.approx(other.temperature, rel=1e-6)
    assert one.biases == pytest.approx(other.biases, abs=1e-6)


def test_certain_probabilities_and_absent_classes_stay_finite() -> None:
    p = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = fit_vector_scaling(p, np.array([0, 1, 1]))
    assert np.isfinite(found.apply(p)).all()
    assert found.apply(p).sum(axis=1) == pytest.approx(1.0)
