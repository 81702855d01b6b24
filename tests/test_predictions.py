from typing import Any

import numpy as np
import pytest

from models.card import ModelCard
from models.errors import UndecodableImage
from service.errors import InferenceFailed
from service.predictions import RowAnswer, answer_rows, predict_items
from tests.serving import linear_card, linear_weights

TASKS = {"multiclass": ["a", "b", "c"], "multilabel": ["a", "b", "c"], "binary": ["no", "yes"]}


def card_of(task: Any) -> ModelCard:
    labels = TASKS[task]
    return linear_card(labels, linear_weights(1 if task == "binary" else len(labels)), task=task)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_top_k_is_cut_to_the_number_of_classes(task: str, top_k: int) -> None:
    card = card_of(task)
    (item,) = predict_items(card, answer_rows(card, np.zeros((1, card.outputs), np.float32)), [None], top_k)
    assert len(item["top_k"]) == min(top_k, len(card.labels))
    assert len(item["probabilities"]) == len(card.labels)
    assert "id" not in item and ("labels" in item) == (task == "multilabel")


def test_the_first_of_the_top_is_the_label_and_its_score() -> None:
    card = card_of("multiclass")
    (item,) = predict_items(card, answer_rows(card, np.array([[0.0, 3.0, 1.0]], np.float32)), ["x"], 2)
    assert (item["index"], item["id"], item["label"]) == (0, "x", "b")
    assert [one["label"] for one in item["top_k"]] == ["b", "c"]
    assert item["score"] == item["top_k"][0]["probability"] == item["probabilities"][1]
    assert item["margin"] == pytest.approx(item["probabilities"][1] - item["probabilities"][2])


def test_a_row_of_a_batch_says_what_it_says_alone() -> None:
    card = card_of("multiclass")
    logits = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    together = predict_items(card, answer_rows(card, logits), [None] * 7, 3)
    for n, item in enumerate(together):
        (alone,) = predict_items(card, answer_rows(card, logits[n : n + 1]), [None], 3)
        assert item == {**alone, "index": n}


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_few_rows_say_what_they_say_among_many(task: str) -> None:
    """Few are worked out in Python's floats, many by numpy."""
    card = card_of(task)
    logits = np.random.default_rng(2).normal(0.0, 9.0, size=(200, card.outputs)).astype(np.float32)
    for n, (alone, among) in enumerate(zip(logits, answer_rows(card, logits), strict=True)):
        (one,) = answer_rows(card, logits[n : n + 1])
        assert isinstance(one, RowAnswer) and isinstance(among, RowAnswer)
        assert np.array_equal(one.logits, alone) and np.array_equal(among.logits, alone)
        assert one.found.p == pytest.approx(among.found.p, rel=1e-12)
        assert one.found.margin == pytest.approx(among.found.margin, abs=1e-12)
        assert (one.found.order, one.found.above) == (among.found.order, among.found.above)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_its_own_error_and_its_mates_are_answered(odd: float) -> None:
    card = card_of("multiclass")
    rows = answer_rows(card, np.array([[0, 1, 2], [0, odd, 0], [2, 1, 0]], np.float32))
    assert isinstance(rows[1], InferenceFailed)
    assert isinstance(rows[0], RowAnswer) and np.isfinite(rows[0].found.p).all()
    items = predict_items(card, rows, [None, "bad", None], 1)
    assert [item.get("label") for item in items] == ["c", None, "a"]
    assert items[1]["error"]["status"] == 500 and items[1]["id"] == "bad"


def test_an_image_that_failed_keeps_its_place() -> None:
    card = card_of("binary")
    good = answer_rows(card, np.zeros((1, 1), np.float32))
    items = predict_items(card, [UndecodableImage("no picture"), *good], [None, None], 1)
    assert [item["index"] for item in items] == [0, 1]
    assert items[0]["error"]["detail"] == "no picture" and "label" in items[1]


def test_infinities_of_both_signs_are_errors_of_their_own_rows() -> None:
    logits = np.array([[np.inf, 0.0, 1.0], [0.0, 3.0, 1.0], [0.0, -np.inf, 1.0]], np.float32)
    first, second, third = answer_rows(card_of("multiclass"), logits)
    assert isinstance(first, InferenceFailed) and isinstance(third, InferenceFailed)
    assert isinstance(second, RowAnswer) and second.found.order[0] == 1


def test_what_rows_mean_is_worked_out_once() -> None:
    first, second = answer_rows(card_of("multiclass"), np.array([[0, 1, 2], [2, 1, 0]], np.float32))
    assert isinstance(first, RowAnswer) and isinstance(second, RowAnswer)
    assert first.found is first.found and second.found is second.found
    assert (first.found.order[0], second.found.order[0]) == (2, 0)
