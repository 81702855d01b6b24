"""The posterior under label noise: what it reduces to, its matrices, and how well it counts."""

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from models.noise import (
    anchor_transition,
    best_other,
    combine_evidence,
    combine_twins,
    count_noise,
    deconvolve,
    evenly,
    fit_transition,
    match_count,
    posterior,
    true_class,
)
from tests.noisy import CELLS, load, noise_matrix, synthesize

RNG = np.random.default_rng(5)


@cases(st.integers(2, 12), st.floats(0.01, 0.4), st.integers(0, 1000))
def test_under_symmetric_noise_the_order_is_that_of_the_probability_of_the_given_label(
    classes: int, rate: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    p = np.maximum(rng.dirichlet(np.ones(classes), 50), 1e-6)
    p /= p.sum(axis=1, keepdims=True)
    labels = rng.integers(0, classes, 50)
    rate = min(rate, 0.9 * (classes - 1) / classes)
    quality = posterior(p, labels, noise_matrix(classes, rate, "sym", rng))
    own = p[np.arange(50), labels]
    order = np.argsort(own, kind="stable")
    assert (np.diff(quality[order]) >= -1e-12).all()


def test_the_posterior_is_bayes() -> None:
    transition = np.array([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.0, 0.2, 0.8]])
    p = np.array([[0.5, 0.3, 0.2]])
    joint = [0.5 * 0.3, 0.3 * 0.9, 0.2 * 0.2]
    assert posterior(p, np.array([1]), transition)[0] == pytest.approx(joint[1] / sum(joint))
    assert true_class(p, np.array([1]), transition)[0] == pytest.approx(np.array(joint) / sum(joint))
    assert best_other(p, np.array([1]), transition).tolist() == [0]


def test_a_class_that_is_often_mislabelled_is_doubted_more() -> None:
    transition = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    quality = posterior(p, np.array([1, 1]), transition)
    assert quality[0] < quality[1]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_no_posterior_depends_on_the_batch_or_its_order(size: int) -> None:
    cell = load("lt_pair_10")
    transition = fit_transition(cell.p, cell.given)
    whole, other = posterior(cell.p, cell.given, transition), best_other(cell.p, cell.given, transition)
    for start in range(0, 500, size):
        part = slice(start, start + size)
        assert np.array_equal(posterior(cell.p[part], cell.given[part], transition), whole[part])
    order = RNG.permutation(len(whole))
    assert np.array_equal(posterior(cell.p[order], cell.given[order], transition), whole[order])
    assert np.array_equal(best_other(cell.p[order], cell.given[order], transition), other[order])


@pytest.mark.parametrize("name", ["bal_pair_10", "lt_sym_20"])
def test_both_matrices_have_rows_that_sum_to_1_and_do_not_depend_on_the_order(name: str) -> None:
    cell = load(name)
    order = RNG.permutation(len(cell.given))
    for estimate in (fit_transition, anchor_transition):
        found = estimate(cell.p, cell.given)
        assert found.shape == (10, 10)
        assert found.sum(axis=1) == pytest.approx(1.0)
        assert (found >= 0.0).all()
        assert estimate(cell.p[order], cell.given[order]) == pytest.approx(found, abs=1e-12)


def test_a_class_that_is_never_predicted_gets_a_row_too() -> None:
    p = np.tile([[0.6, 0.3, 0.1]], (30, 1))
    labels = np.array([0] * 20 + [1] * 7 + [2] * 3)
    for estimate in (fit_transition, anchor_transition):
        assert estimate(p, labels).sum(axis=1) == pytest.approx(1.0)


def test_deconvolution_takes_the_noise_out() -> None:
    clean = RNG.dirichlet(np.full(6, 0.05), 500)
    transition = noise_matrix(6, 0.2, "mix", RNG)
    found = deconvolve(clean @ transition, transition)
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert np.abs(found - clean).mean() < 0.2 * np.abs(clean @ transition - clean).mean()


def test_evidence_of_both_kinds_adds_and_one_half_says_nothing() -> None:
    quality = np.array([0.0, 0.2, 0.9, 1.0])
    assert combine_evidence(quality, np.full(4, 0.5)) == pytest.approx(np.clip(quality, 1e-5, 1 - 1e-5))
    assert combine_evidence(np.array([0.8]), np.array([0.8]))[0] == pytest.approx(16 / 17)
    assert combine_evidence(np.array([0.0]), np.array([1.0]))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("name", CELLS)
def test_the_count_of_wrong_labels_is_within_a_quarter_on_real_images(name: str) -> None:
    cell = load(name)
    found = count_noise(cell.p, cell.given)
    assert 0.85 < found.wrong / cell.wrong.sum() < 1.25  # measured: .91 to 1.21, mean .99
    assert found.joint.sum() == pytest.approx(len(cell.given))
    assert found.joint.sum(axis=0) == pytest.approx(np.bincount(cell.given, minlength=10), rel=0.02, abs=2)
    assert found.joint.sum() - np.trace(found.joint) == pytest.approx(found.wrong)


@pytest.mark.parametrize("kind", ["sym", "pair", "mix"])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_count_holds_for_a_hundred_classes(kind: str, rate: float) -> None:
    cell = synthesize(100, 10_000, rate, kind, seed=1)
    assert 0.85 < count_noise(cell.p, cell.given).wrong / cell.wrong.sum() < 1.15  # measured: .94 to 1.03


@pytest.mark.parametrize("kind", ["sym", "pair", "mix"])
def test_the_count_holds_for_a_thousand_classes_of_ten_images(kind: str) -> None:
    cell = synthesize(1_000, 10_000, 0.05, kind, seed=1)
    assert 0.75 < count_noise(cell.p, cell.given).wrong / cell.wrong.sum() < 1.25  # measured: 1.00 to 1.06


@pytest.mark.parametrize("classes", [10, 100])
def test_hardly_anything_is_counted_where_nothing_is_wrong(classes: int) -> None:
    cell = synthesize(classes, 5_000, 0.0, "sym", seed=2)
    assert count_noise(cell.p, cell.given).wrong < 0.01 * len(cell.given)


def test_rows_are_spaced_evenly_and_none_is_left_out_where_they_fit() -> None:
    assert evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly(9, 3).tolist() == [0, 4, 8]


def test_of_two_pictures_that_look_the_same_one_label_is_doubted_and_the_surer_one_less() -> None:
    quality = np.array([0.9, 0.5, 0.7, 1.0, 1.0])
    found = combine_twins(quality, np.array([1, 0, -1, 4, 3]))
    right = 0.9 * 0.5  # both right: only in one pair of twenty
    assert found[0] == pytest.approx((0.9 - 0.95 * right) / (1 - 0.95 * right))
    assert found[1] == pytest.approx((0.5 - 0.95 * right) / (1 - 0.95 * right))
    assert found[2] == 0.7
    assert found[3] == found[4] == pytest.approx(1.0)  # surely right both: two classes that look the same
    assert (found[:2] < quality[:2]).all() and found[0] > found[1]
    assert combine_twins(np.array([1e-9, 0.9]), np.array([1, 0]))[1] == pytest.approx(0.9)


@cases(st.floats(0.01, 0.5), st.integers(0, 1000))
def test_the_doubts_are_made_to_add_up_to_the_count_in_the_same_order(rate: float, seed: int) -> None:
    quality = np.random.default_rng(seed).beta(2.0, 1.0, 300)
    found = match_count(quality, rate * 300)
    odds = (found / (1.0 - found)) / (quality / (1.0 - quality))
    assert odds == pytest.approx(np.full(300, odds[0])) and 0.1 - 1e-6 <= odds[0] <= 10.0 + 1e-6
    assert np.array_equal(np.argsort(found), np.argsort(quality))
    if 0.11 < odds[0] < 9.0:
        assert (1.0 - found).sum() == pytest.approx(rate * 300)


def test_what_is_certain_stays_so_however_many_are_counted() -> None:
    quality = np.array([0.0, 0.5, 1.0])
    for wrong in (0.0, 1.5, 3.0):
        found = match_count(quality, wrong)
        assert found[0] == 0.0 and found[2] == 1.0 and 0.09 < found[1] < 0.92
    assert match_count(quality, 1.5) == pytest.approx(quality)
