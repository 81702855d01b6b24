"""Quality of labels: cleanlab's definitions, per row, whatever the batch."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from models.quality import WORST_WEIGHT, confident_label, normalized_margin, ranks, worst_dominates

Floats = NDArray[np.float64]

units = st.floats(0.0, 1.0)


def posteriors(count: int, classes: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), count)


def matrices(columns: int) -> st.SearchStrategy[Floats]:
    return st.integers(1, 8).flatmap(lambda rows: arrays.arrays(np.float64, (rows, columns), elements=units))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_margin_is_that_of_the_definition(classes: int) -> None:
    p = posteriors(50, classes)
    labels = np.arange(50) % classes
    expected = [(row[y] - max(np.delete(row, y)) + 1.0) / 2.0 for row, y in zip(p, labels, strict=True)]
    assert normalized_margin(p, labels) == pytest.approx(expected, abs=1e-15)


def test_the_margin_of_two_classes_is_the_probability_of_the_given_one() -> None:
    p = posteriors(50, 2)
    assert normalized_margin(p, np.zeros(50, np.intp)) == pytest.approx(p[:, 0])


def test_the_margin_is_0_where_surely_wrong_half_at_a_tie_and_1_where_surely_right() -> None:
    p = np.array([[0.0, 1.0, 0.0], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0]])
    assert normalized_margin(p, np.zeros(3, np.intp)).tolist() == [0.0, 0.5, 1.0]


def test_the_margin_leaves_its_arguments_alone() -> None:
    p = posteriors(5, 3)
    before = p.copy()
    normalized_margin(p, np.zeros(5, np.intp))
    assert np.array_equal(p, before)


@pytest.mark.filterwarnings("ignore")
def test_margins_are_cleanlabs() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    p = posteriors(200, 5)
    labels = np.random.default_rng(1).integers(0, 5, 200)
    theirs = rank.get_label_quality_scores(labels, p, method="normalized_margin")
    assert normalized_margin(p, labels) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_the_aggregate_of_a_multilabel_sample_is_cleanlabs() -> None:
    scorer = pytest.importorskip("cleanlab.internal.multilabel_scorer")
    scores = np.random.default_rng(2).random((100, 6))
    assert worst_dominates(scores) == pytest.approx(scorer.exponential_moving_average(scores, alpha=0.8), abs=1e-12)


@given(matrices(4))
def test_the_aggregate_is_a_moving_average_from_the_best_to_the_worst(scores: Floats) -> None:
    for row, found in zip(scores, worst_dominates(scores), strict=True):
        ordered = sorted(row.tolist(), reverse=True)
        total = ordered[0]
        for score in ordered[1:]:
            total = (1.0 - WORST_WEIGHT) * total + WORST_WEIGHT * score
        assert found == pytest.approx(total, abs=1e-12)
        assert ordered[-1] - 1e-12 <= found <= ordered[0] + 1e-12


def test_one_bad_element_among_many_keeps_its_weight() -> None:
    scores = np.full((1, 50), 0.99)
    scores[0, 17] = 0.01
    assert worst_dominates(scores)[0] == pytest.approx(0.2 * 0.99 + 0.8 * 0.01)


@given(matrices(5), st.randoms(use_true_random=False))
def test_the_aggregate_does_not_depend_on_the_order_of_the_elements(scores: Floats, random: Any) -> None:
    order = list(range(5))
    random.shuffle(order)
    assert np.array_equal(worst_dominates(scores[:, order]), worst_dominates(scores))


@given(matrices(3), st.randoms(use_true_random=False))
def test_no_score_depends_on_the_batch_or_its_order(p: Floats, random: Any) -> None:
    labels, thresholds = np.arange(len(p)) % 3, np.array([0.3, 0.5, 0.7])
    order = list(range(len(p)))
    random.shuffle(order)
    for score in (
        lambda part, given: normalized_margin(part, given),
        lambda part, given: worst_dominates(part),
        lambda part, given: confident_label(part, thresholds),
    ):
        whole = score(p, labels)
        assert np.array_equal(score(p[order], labels[order]), whole[order])
        alone = [score(p[i : i + 1], labels[i : i + 1])[0] for i in range(len(p))]
        assert np.array_equal(np.array(alone), whole)


@pytest.mark.parametrize(
    ("p", "thresholds", "expected"),
    [
        ([0.7, 0.2, 0.1], [0.5, 0.5, 0.5], 0),
        ([0.4, 0.35, 0.25], [0.5, 0.5, 0.5], -1),
        ([0.6, 0.3, 0.1], [0.7, 0.25, 0.2], 1),
        ([0.5, 0.5, 0.0], [0.4, 0.4, 0.4], 0),
        ([0.4999995, 0.3, 0.2000005], [0.5, 0.5, 0.5], 0),
        ([0.0, 0.0, 1.0], [0.0, 0.0, 2.0], 0),
    ],
)
def test_the_confident_label_is_the_likeliest_that_reaches_its_threshold(
    p: list[float], thresholds: list[float], expected: int
) -> None:
    assert confident_label(np.array([p]), np.array(thresholds)).tolist() == [expected]


def test_ranks_count_from_the_worst_and_skip_what_is_not_valid() -> None:
    quality = np.array([0.5, 0.1, 0.9, 0.0, 0.5])
    valid = np.array([True, True, True, False, True])
    assert ranks(quality, valid).tolist() == [2, 1, 4, 0, 3]


def test_ranks_of_equal_qualities_follow_their_position() -> None:
    assert ranks(np.zeros(5), np.ones(5, np.bool_)).tolist() == [1, 2, 3, 4, 5]
    assert ranks(np.zeros(0), np.zeros(0, np.bool_)).tolist() == []


@given(arrays.arrays(np.float64, st.integers(0, 20), elements=units))
def test_ranks_are_a_permutation_that_sorts(quality: Floats) -> None:
    order = np.argsort(ranks(quality, np.ones(len(quality), np.bool_)))
    assert (np.diff(quality[order]) >= 0.0).all()
