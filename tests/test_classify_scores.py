"""Scores of given labels: per item, whatever the batch, on calibrated probabilities; suggestions and issues."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from models.calibration import probabilities
from models.card import Calibration, LossSpec, ModelCard
from models.classify import is_clipped, logits_of
from models.losses import sigmoid_focal, softmax_focal
from models.task import LabelScores, ScoreOptions
from models.tasks import TASKS
from tests.test_classify import card_of

PLAIN = ScoreOptions(gamma=2.0, alpha=None)
FACTS = ("loss", "log_p_given", "margin", "quality", "is_issue", "valid", "percentile")
LEVELS = [0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0]

row_values = st.floats(-50.0, 50.0)


def score(
    card: ModelCard, rows: Any, labels: list[Any], options: ScoreOptions = PLAIN, *, raw: bool = True
) -> LabelScores:
    task, logits = TASKS[card.task], np.asarray(rows, np.float64)
    targets = np.stack([task.targets(label, card) for label in labels])
    return task.score(logits, targets, card, options, np.full(len(logits), raw))


def log(*p: float) -> NDArray[np.float64]:
    return np.asarray(np.log(np.array([p])))


def logit(*p: float) -> NDArray[np.float64]:
    return np.asarray(np.log(np.array([p])) - np.log1p(-np.array([p])))


def calibrated(card: ModelCard, gamma: float = 2.0, temperature: float = 1.5) -> ModelCard:
    return card.model_copy(update={"calibration": Calibration(gamma=gamma, temperature=temperature)})


def assert_equal(left: LabelScores, right: LabelScores, places: list[int]) -> None:
    for fact in FACTS:
        np.testing.assert_array_equal(getattr(left, fact), getattr(right, fact)[places], err_msg=fact)
    assert left.suggested == [right.suggested[i] for i in places]


def batches(columns: int) -> st.SearchStrategy[NDArray[np.float64]]:
    shapes = st.tuples(st.integers(1, 6), st.just(columns))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float64, shape, elements=row_values))


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_no_score_depends_on_the_batch_or_its_order(task: str, data: st.DataObject) -> None:
    card = calibrated(card_of(task, loss_quantiles=np.linspace(0.0, 9.0, 10).tolist()))
    rows = data.draw(batches(card.outputs))
    choices: Any = st.integers(0, 2) if task == "multiclass" else st.lists(st.booleans(), min_size=card.outputs)
    labels = [data.draw(choices) for _ in rows]
    labels = [label if isinstance(label, int) else [float(bit) for bit in label[: card.outputs]] for label in labels]
    whole, order = score(card, rows, labels), data.draw(st.permutations(range(len(rows))))
    assert_equal(score(card, rows[order], [labels[i] for i in order]), whole, list(order))
    for i in range(len(rows)):
        assert_equal(score(card, rows[i : i + 1], labels[i : i + 1]), whole, [i])


@given(batches(3), st.data())
def test_a_soft_label_that_is_one_hot_scores_as_the_hard_one(rows: NDArray[np.float64], data: st.DataObject) -> None:
    card = calibrated(card_of("multiclass"))
    labels = [data.draw(st.integers(0, 2)) for _ in rows]
    hard, soft = score(card, rows, labels), score(card, rows, [np.eye(3)[y].tolist() for y in labels])
    for fact in FACTS:
        np.testing.assert_allclose(getattr(soft, fact), getattr(hard, fact), rtol=1e-9, atol=1e-12, err_msg=fact)
    assert soft.suggested == hard.suggested


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_score_as_the_logits_they_are_made_of(task: str) -> None:
    card = card_of(task)
    rows = np.random.default_rng(0).normal(0.0, 3.0, (20, card.outputs))
    labels: list[Any] = [k % len(card.labels) for k in range(20)]
    p = probabilities(rows, card.activation, Calibration())
    left, right = score(card, logits_of(p, card.activation), labels, raw=False), score(card, rows, labels)
    for fact in ("loss", "log_p_given", "margin", "quality", "is_issue"):
        np.testing.assert_allclose(getattr(left, fact), getattr(right, fact), rtol=1e-6, atol=1e-9)
    assert left.suggested == right.suggested


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sure", [0.0, 1.0])
def test_probabilities_of_exactly_0_and_1_have_finite_scores(task: str, sure: float) -> None:
    card = card_of(task)
    p = np.array([[sure] * card.outputs if task != "multiclass" else [sure, 1.0 - sure, 0.0]])
    rows = logits_of(p, card.activation)
    assert np.isfinite(rows).all()
    for label in (0, 1):
        scores = score(card, rows, [label], raw=False)
        assert np.isfinite([scores.loss[0], scores.log_p_given[0], scores.quality[0]]).all()
        assert is_clipped(p[0], TASKS[task].targets(label, card)) == (scores.loss[0] > 700.0)


def test_a_soft_label_is_clipped_where_it_weighs_an_impossible_class() -> None:
    p = np.array([1.0, 0.0, 0.0])
    assert is_clipped(p, np.array([0.6, 0.4, 0.0]))
    assert not is_clipped(p, np.array([1.0, 0.0, 0.0]))


def test_the_loss_is_the_focal_loss_with_what_was_asked() -> None:
    rows, weights = np.random.default_rng(0).normal(size=(4, 3)), [0.5, 1.0, 2.0]
    options = ScoreOptions(gamma=1.5, alpha=weights, label_smoothing=0.1)
    expected = softmax_focal(rows, np.array([0, 1, 2, 0]), gamma=1.5, alpha=weights, label_smoothing=0.1).values
    assert score(card_of("multiclass"), rows, [0, 1, 2, 0], options).loss == pytest.approx(expected)
    bits = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    alone = sigmoid_focal(rows[:2], np.array(bits), gamma=1.5, alpha=0.25).values
    found = score(card_of("multilabel"), rows[:2], bits, ScoreOptions(gamma=1.5, alpha=0.25))
    assert found.loss == pytest.approx(alone.sum(axis=1))


@pytest.mark.parametrize("task", TASKS)
def test_quality_does_not_depend_on_what_the_loss_is_asked_to_be(task: str) -> None:
    card = calibrated(card_of(task))
    rows = np.random.default_rng(0).normal(size=(6, card.outputs))
    alpha = [0.1, 0.5, 0.9] if task == "multiclass" else 0.2
    labels: list[Any] = [k % 2 for k in range(6)]
    asked = score(card, rows, labels, ScoreOptions(gamma=0.0, alpha=alpha, label_smoothing=0.2))
    plain = score(card, rows, labels)
    for fact in ("log_p_given", "margin", "quality", "is_issue"):
        np.testing.assert_allclose(getattr(asked, fact), getattr(plain, fact), rtol=1e-12, err_msg=fact)


def test_calibration_moves_the_quality_of_raw_rows_and_never_loss_or_margin() -> None:
    card, rows = calibrated(card_of("multiclass")), log(0.6, 0.3, 0.1)
    raw, final = score(card, rows, [0]), score(card, rows, [0], raw=False)
    assert final.quality[0] == pytest.approx(final.margin[0])
    assert final.margin[0] == pytest.approx((0.6 - 0.3 + 1.0) / 2.0)
    assert (raw.loss[0], raw.margin[0], raw.log_p_given[0]) == (final.loss[0], final.margin[0], final.log_p_given[0])
    assert raw.quality[0] != pytest.approx(final.quality[0], abs=1e-3)


@pytest.mark.parametrize(
    ("p", "label", "suggested", "is_issue"),
    [
        ([0.1, 0.8, 0.1], 0, 1, True),  # another class is likelier and reaches its threshold
        ([0.1, 0.8, 0.1], 1, None, False),  # the given one stands
        ([0.3, 0.45, 0.25], 0, None, False),  # likelier, but below its threshold
        ([0.4, 0.3, 0.3], 0, None, False),  # the given one is the likeliest, though below its threshold
    ],
)
def test_an_issue_of_one_label_of_many(p: list[float], label: int, suggested: int | None, is_issue: bool) -> None:
    card = card_of("multiclass", confidence_threshold=(0.6, 0.5, 0.28))
    scores = score(card, log(*p), [label])
    assert scores.is_issue.tolist() == [is_issue]
    assert scores.suggested == ([None] if suggested is None else [suggested])


@pytest.mark.parametrize(
    ("p", "label", "suggested", "is_issue"),
    [
        (0.95, 0, 1, True),  # labelled plain, surely striped
        (0.7, 0, 1, False),  # above the decision threshold, but not sure
        (0.3, 0, None, False),
        (0.3, 1, 0, True),  # labelled striped, likely plain
        (0.55, 1, 0, False),  # below the decision threshold, but not below a half
        (0.7, 1, None, False),
    ],
)
def test_an_issue_of_yes_or_no_with_one_logit(p: float, label: int, suggested: int | None, is_issue: bool) -> None:
    card = card_of("binary", decision_threshold=(0.5, 0.6), confidence_threshold=(0.5, 0.9))
    scores = score(card, logit(p), [label])
    assert (scores.is_issue.tolist(), scores.suggested) == ([is_issue], [suggested])
    assert scores.quality[0] == pytest.approx(p if label else 1.0 - p)
    assert scores.margin[0] == pytest.approx(p if label else 1.0 - p)


def test_the_suggestion_for_many_labels_is_the_whole_set() -> None:
    card = card_of("multilabel", confidence_threshold=0.8)
    rows = logit(0.9, 0.1, 0.6)
    scores = score(card, np.tile(rows, (4, 1)), [["dog"], ["cat", "cow"], ["cat"], []])
    assert scores.suggested == [(0, 2), None, (0, 2), (0, 2)]
    assert scores.is_issue.tolist() == [True, False, False, True]
    assert scores.margin == pytest.approx([0.1, 0.6, 0.4, 0.1])
    ordered = [0.9, 0.9, 0.4]  # of the third: cat, dog, cow
    assert scores.quality[2] == pytest.approx(0.2 * ordered[0] + 0.8 * ordered[2])


def test_an_empty_suggestion_says_that_no_label_fits() -> None:
    assert score(card_of("multilabel"), logit(0.1, 0.1, 0.1), [["cat"]]).suggested == [()]


def test_percentiles_follow_the_stored_quantiles_of_the_given_class() -> None:
    quantiles = [float(k) for k in range(10)]
    card = card_of("multiclass", loss_quantiles=(quantiles, [], quantiles))
    rows = np.zeros((4, 3))
    rows[:, 0] = [5.0, -5.0, 0.0, -50.0]
    scores = score(card, rows, [0, 0, 1, 0])
    assert scores.percentile[2] != scores.percentile[2]  # class 1 has no quantiles
    assert scores.percentile[[0, 1, 3]] == pytest.approx(np.interp(scores.loss[[0, 1, 3]], quantiles, LEVELS))
    assert scores.percentile[3] == 1.0


def test_percentiles_of_a_soft_yes_are_those_of_yes() -> None:
    card = card_of("binary", loss_quantiles=([9.0] * 10, np.linspace(0.0, 0.1, 10).tolist()))
    assert score(card, [[-3.0]], [[0.9]]).percentile[0] == 1.0


@pytest.mark.parametrize("change", [{"gamma": 1.0}, {"alpha": [1.0, 1.0, 1.0]}, {"label_smoothing": 0.1}])
def test_percentiles_are_unknown_for_a_loss_that_was_not_the_models(change: dict[str, Any]) -> None:
    card = card_of("multiclass", loss_quantiles=np.linspace(0.0, 9.0, 10).tolist())
    assert card.loss == LossSpec()
    assert np.isfinite(score(card, np.zeros((1, 3)), [0]).percentile).all()
    assert np.isnan(score(card, np.zeros((1, 3)), [0], dataclasses.replace(PLAIN, **change)).percentile).all()
    assert np.isnan(score(card, np.zeros((1, 3)), [0], raw=False).percentile).all()


@pytest.mark.filterwarnings("error")
def test_ignored_rows_may_hold_anything_and_change_nothing() -> None:
    card, options = card_of("multiclass"), dataclasses.replace(PLAIN, ignore_index=-100)
    rows = np.array([[1.0, 2.0, 3.0], [np.nan, np.inf, -np.inf]])
    ones = np.ones(2, np.bool_)
    scores = TASKS["multiclass"].score(rows, np.array([0, -100]), card, options, ones)
    assert scores.valid.tolist() == [True, False]
    assert scores.is_issue.tolist()[1] is False
    assert np.isfinite([scores.loss, scores.quality, scores.margin, scores.log_p_given]).all()
    alone = score(card, rows[:1], [0])
    assert [scores.loss[0], scores.quality[0]] == [alone.loss[0], alone.quality[0]]


def test_an_ignored_element_counts_nowhere() -> None:
    options = dataclasses.replace(PLAIN, ignore_index=-1)
    rows, bits = np.array([[0.3, np.nan, -1.0], [np.nan] * 3]), np.array([[1.0, -1.0, 1.0], [-1.0] * 3])
    some = TASKS["multilabel"].score(rows, bits, card_of("multilabel"), options, np.ones(2, np.bool_))
    two = score(card_of("multilabel", ["cat", "cow"]), [[0.3, -1.0]], [[1.0, 1.0]])
    for fact in ("loss", "log_p_given", "margin", "quality", "is_issue"):
        assert getattr(some, fact)[0] == pytest.approx(getattr(two, fact)[0])
    assert some.suggested[0] == (0,)
    assert some.valid.tolist() == [True, False]
    assert (some.quality[1], some.is_issue[1], some.suggested[1]) == (1.0, False, None)


@pytest.mark.parametrize("task", TASKS)
def test_no_rows_have_no_scores(task: str) -> None:
    card = card_of(task)
    none: NDArray[Any] = np.zeros(0, np.int64) if task == "multiclass" else np.zeros((0, card.outputs))
    scores = TASKS[task].score(np.zeros((0, card.outputs)), none, card, PLAIN, np.zeros(0, np.bool_))
    assert (len(scores.loss), scores.suggested) == (0, [])
