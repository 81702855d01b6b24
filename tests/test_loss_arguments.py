"""What a focal loss refuses, and that it names what it refuses."""

from typing import Any

import numpy as np
import pytest

from models.errors import InvalidInput
from models.losses import binary_margin_focal, margin, sigmoid_focal, softmax_focal, total

Z, Y = [[0.0, 1.0], [2.0, 3.0]], [0, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1}, "gamma must be a finite number >= 0, not -1"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": float("inf")}, "gamma"),
        ({"gamma": True}, "gamma must be a number"),
        ({"gamma": "2"}, "gamma must be a number"),
        ({"alpha": 0.25}, "scalar alpha .* no agreed meaning for softmax.*uniform"),
        ({"alpha": 0.25, "alpha_mode": "kornia"}, "unknown alpha_mode 'kornia'; known: uniform"),
        ({"alpha": [1, 2], "alpha_mode": "uniform"}, "for a scalar alpha"),
        ({"alpha": [1, 2, 3]}, r"one weight for each of the 2 classes, not shape \(3,\)"),
        ({"alpha": [1, -2]}, r"alpha\[1\] must be finite and >= 0"),
        ({"alpha": [float("inf"), 1]}, r"alpha\[0\]"),
        ({"alpha": ["a", "b"]}, "alpha must be numbers"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\]"),
        ({"soft": "qfl"}, "unknown soft-target convention 'qfl'; known here: expected"),
        ({"logits": [[0.0, 1.0], [np.nan, 1.0]]}, "logits of row 1 are not finite"),
        ({"logits": [[-np.inf, 1.0], [0.0, 1.0]]}, "logits of row 0"),
        ({"logits": [[0.0, -np.inf], [0.0, 1.0]]}, "logits of row 0"),
        ({"logits": [[0.0, 1.0], [np.inf, np.inf]], "label_smoothing": 0.1}, "logits of row 1"),
        ({"logits": [[0.0], [1.0]]}, "C >= 2"),
        ({"logits": [0.0, 1.0]}, r"\[N, C\]"),
        ({"logits": [[0.0, 1.0], [2.0]]}, "equal length"),
        ({"logits": [["a", "b"]]}, "real numbers"),
        ({"targets": [0, 2]}, r"target 2 of row 1 is not a class in 0\.\.1"),
        ({"targets": [-1, 0]}, "target -1 of row 0 is not a class"),
        ({"targets": [0, -100], "ignore_index": -1}, "target -100 of row 1"),
        ({"targets": [0.0, 1.0]}, "integer class indices"),
        ({"targets": [True, False]}, "integer class indices"),
        ({"targets": [0, 1, 1]}, r"shape \(3,\) fit neither"),
        ({"targets": [[0.5, 0.5], [1.2, 0.0]]}, r"target 1.2 at \(1, 0\) is not in \[0, 1\]"),
        ({"targets": ["a", "b"]}, "targets must be numbers"),
    ],
)
def test_softmax_refuses_and_names(options: dict[str, Any], words: str) -> None:
    logits, targets = options.pop("logits", Z), options.pop("targets", Y)
    with pytest.raises(InvalidInput, match=words):
        softmax_focal(logits, targets, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\] for sigmoid"),
        ({"alpha": -1}, "alpha"),
        ({"alpha": [0.5, 2.0]}, r"alpha\[1\] must be in \[0, 1\] for sigmoid"),
        ({"alpha": 0.5, "soft": "qfl"}, "'qfl' takes no alpha"),
        ({"soft": "smooth"}, "unknown soft-target convention 'smooth'; known here: expected, interpolated, qfl"),
        ({"targets": [[0, 1], [1, 2]]}, r"target 2 at \(1, 1\) is not in \[0, 1\]"),
        ({"targets": [[0, 1], [float("nan"), 0]]}, r"\(1, 0\)"),
        ({"targets": [0, 1]}, "do not fit"),
        ({"logits": [[0.0, np.nan], [0.0, 0.0]]}, r"logit at \(0, 1\) is not finite"),
        ({"logits": [0.0, 1.0], "targets": [0, 1], "alpha": [0.5, 0.5]}, "class axis"),
    ],
)
def test_sigmoid_refuses_and_names(options: dict[str, Any], words: str) -> None:
    logits, targets = options.pop("logits", Z), options.pop("targets", [[0, 1], [1, 0]])
    with pytest.raises(InvalidInput, match=words):
        sigmoid_focal(logits, targets, **options)


def test_a_loss_beyond_its_dtype_is_refused_and_one_within_is_not() -> None:
    huge = np.array([[0.0, 1.0], [-3e38, 3e38]], np.float32)
    with pytest.raises(InvalidInput, match="loss of row 1 overflows float32"):
        softmax_focal(huge, [0, 0])
    right = softmax_focal(huge, [0, 1], gamma=0)
    assert right.values[1] == 0 and np.isfinite(right.gradient).all() and right.log_1mpt is not None
    assert np.isfinite(right.log_1mpt).all()
    wrong = sigmoid_focal(np.array([-1.7e308, -1.7e308]), [1, 1])
    assert (wrong.values == 1.7e308).all()
    with pytest.raises(InvalidInput, match="overflows float64"):
        total(wrong, "sum")


@pytest.mark.parametrize(
    ("kind", "name"), [("softmax", "average"), ("softmax", "num_positive"), ("sigmoid", "mean_weighted")]
)
def test_unknown_reductions_are_refused_with_the_known_ones(kind: str, name: str) -> None:
    terms = softmax_focal(Z, Y) if kind == "softmax" else sigmoid_focal(Z, [[0, 1], [1, 0]])
    with pytest.raises(InvalidInput, match=f"unknown reduction '{name}' for {kind}; known: sum, mean"):
        total(terms, name)


def test_margins_refuse_what_has_no_label_or_is_not_finite() -> None:
    with pytest.raises(InvalidInput, match="class indices"):
        margin(Z, [[0.5, 0.5], [1.0, 0.0]])
    with pytest.raises(InvalidInput, match="finite"):
        binary_margin_focal([np.nan], 2.0)
