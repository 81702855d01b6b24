"""Labels and predictions of the three classification tasks."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from models.card import ModelCard
from models.errors import InvalidLabel
from models.tasks import TASKS
from tests.test_card import card_fields

NAMES = ["cat", "dog", "cow"]
BOTH = ["plain", "striped"]


class Answer(NamedTuple):
    top: list[tuple[str, float]]
    margin: float
    above: list[str] | None


def card_of(task: str, labels: list[str] | None = None, **facts: Any) -> ModelCard:
    """A small card; `facts` of every class alike, or one per class in a tuple."""
    names = labels or (BOTH if task == "binary" else NAMES)
    fields = card_fields(names, task)
    for k, part in enumerate(fields["classes"]):
        part |= {key: value[k] if isinstance(value, tuple) else value for key, value in facts.items()}
    return ModelCard.model_validate(fields)


def targets(task: str, label: Any) -> Any:
    return TASKS[task].targets(label, card_of(task)).tolist()


@pytest.mark.parametrize(
    ("task", "label", "expected"),
    [
        ("multiclass", 0, 0),
        ("multiclass", 2, 2),
        ("multiclass", "cow", 2),
        ("multiclass", ["dog"], 1),
        ("multiclass", [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]),
        ("multiclass", [0, 1, 0], [0.0, 1.0, 0.0]),
        ("multilabel", [], [0.0, 0.0, 0.0]),
        ("multilabel", ["cow", "cat"], [1.0, 0.0, 1.0]),
        ("multilabel", [1, 1, 0], [1.0, 1.0, 0.0]),
        ("multilabel", [0.5, 1, 0], [0.5, 1.0, 0.0]),
        ("multilabel", "dog", [0.0, 1.0, 0.0]),
        ("multilabel", 2, [0.0, 0.0, 1.0]),
        ("binary", 0, [0.0]),
        ("binary", 1, [1.0]),
        ("binary", "striped", [1.0]),
        ("binary", ["plain"], [0.0]),
        ("binary", [0.75], [0.75]),
        ("binary", [0.25, 0.75], [0.75]),
    ],
)
def test_a_label_becomes_numbers(task: str, label: Any, expected: Any) -> None:
    found = TASKS[task].targets(label, card_of(task))
    assert found.tolist() == expected
    assert found.dtype.name == ("int64" if isinstance(expected, int) else "float64")


ODD = [True, False, 1.0, "1", "", -1, 3, 2**63, 10**400, None, {}, {"label": 1}, b"cat", float("nan")]


@pytest.mark.parametrize("label", ODD, ids=lambda label: repr(label)[:20])
@pytest.mark.parametrize("task", TASKS)
def test_what_is_no_label_is_refused(task: str, label: Any) -> None:
    with pytest.raises(InvalidLabel):
        targets(task, label)


LISTS = [
    [True, False, False],
    [0.5, None, 0.5],
    ["cat", 1],
    [1, "cat", 0],
    [[1.0, 0.0, 0.0]],
    [1.0, 0.0],
    [0.25, 0.25, 0.25, 0.25],
    [float("nan"), 1.0, 0.0],
    [float("inf"), 0.0, 0.0],
    [1.5, -0.5, 0.0],
    [10**400, 0, 0],
    ["mouse"],
    ["cat", "mouse"],
]


@pytest.mark.parametrize("label", LISTS, ids=lambda label: repr(label)[:20])
@pytest.mark.parametrize("task", TASKS)
def test_a_list_that_is_no_label_is_refused(task: str, label: Any) -> None:
    if task == "binary" and label == [1.0, 0.0]:
        label = [1.0, 0.5]
    with pytest.raises(InvalidLabel):
        targets(task, label)


@pytest.mark.parametrize(
    ("task", "label", "said"),
    [
        ("multiclass", [0.5, 0.4, 0.0], r"must sum to 1 \(it sums to 0.9\)"),
        ("multiclass", [], "a list of 3 numbers"),
        ("multiclass", ["cat", "dog"], "a list of 3 numbers"),
        ("multiclass", "mouse", "it has cat, dog, cow"),
        ("multiclass", 3, "label index 3 is out of range: 0 to 2"),
        ("multiclass", 2**63, "the label index is out of range: 0 to 2"),
        ("multilabel", ["cat", "cat"], "named twice"),
        ("binary", [0.5, 0.4], "must sum to 1"),
        ("binary", 2, "label index 2 is out of range: 0 to 1"),
    ],
)
def test_the_refusal_says_what_is_wrong(task: str, label: Any, said: str) -> None:
    with pytest.raises(InvalidLabel, match=said):
        targets(task, label)


def test_of_many_names_a_refusal_tells_twelve() -> None:
    with pytest.raises(InvalidLabel, match=r"n0, n1, .* n11 and 28 more"):
        TASKS["multiclass"].targets("absent", card_of("multiclass", [f"n{k}" for k in range(40)]))


def test_a_soft_label_is_made_to_sum_to_exactly_1() -> None:
    assert sum(targets("multiclass", [0.3334, 0.3334, 0.3334])) == pytest.approx(1.0, abs=1e-15)


def predicted(task: str, logits: Any, **facts: Any) -> list[Answer]:
    """What the task predicts of rows of logits, in words."""
    card = card_of(task, **facts)
    found = TASKS[task].predict(np.asarray(logits, np.float64), card)
    count = len(card.labels)
    assert found.p.shape == found.order.shape == (len(logits), count) and found.margin.shape == (len(logits),)
    assert (np.sort(found.order, axis=1) == np.arange(count)).all()
    answers = []
    for n, order in enumerate(found.order):
        top = [(card.labels[k], float(found.p[n, k])) for k in order]
        above = None if found.above is None else [card.labels[k] for k in np.flatnonzero(found.above[n])]
        answers.append(Answer(top, float(found.margin[n]), above))
    return answers


def test_multiclass_predicts_the_likeliest_class_with_its_lead() -> None:
    first, second = predicted("multiclass", np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]])))
    assert [name for name, _ in first.top] == ["dog", "cat", "cow"]
    assert [first.top[0][1], first.margin] == pytest.approx([0.7, 0.5])
    assert first.above is None
    assert dict(second.top[:2]) == pytest.approx({"cat": 0.5, "cow": 0.4})


def test_equal_probabilities_are_listed_in_the_order_of_the_labels() -> None:
    (found,) = predicted("multiclass", np.zeros((1, 3)))
    assert [name for name, _ in found.top] == NAMES


def test_multilabel_predicts_every_class_that_reaches_its_threshold() -> None:
    (found,) = predicted("multilabel", [[2.0, -0.5, 0.0]], decision_threshold=(0.9, 0.3, 0.5))
    assert found.above == ["dog", "cow"]
    assert found.margin == pytest.approx(1.0 / (1.0 + np.exp(-2.0)) - 0.9)
    assert [name for name, _ in found.top] == ["cat", "cow", "dog"]


def test_multilabel_may_predict_nothing() -> None:
    (found,) = predicted("multilabel", np.full((1, 3), -3.0))
    assert found.above == []


@pytest.mark.parametrize(("logit", "label", "score"), [(0.0, "plain", 0.5), (1.0, "striped", 0.731), (-9, "plain", 1)])
def test_binary_predicts_by_its_threshold(logit: float, label: str, score: float) -> None:
    (found,) = predicted("binary", [[logit]], decision_threshold=0.6)
    assert found.top[0][0] == label
    assert found.top[0][1] == pytest.approx(score, abs=1e-3)
    assert found.margin == pytest.approx(abs(1.0 / (1.0 + np.exp(-logit)) - 0.6), abs=1e-9)
    assert sum(share for _, share in found.top) == pytest.approx(1.0)
    assert found.above is None


@pytest.mark.parametrize("task", TASKS)
def test_no_rows_have_no_predictions(task: str) -> None:
    assert predicted(task, np.zeros((0, card_of(task).outputs))) == []
