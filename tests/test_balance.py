import numpy as np
import pytest

from models.errors import InvalidInput
from scripts.balance import choose_alpha, count_classes, effective_number, encode_targets, format_counts
from scripts.readers import Sample

COUNTS = np.array([5000, 50], np.int64)


def sample(label: int | tuple[int, ...]) -> Sample:
    return Sample("x.png", label, "x")


@pytest.mark.parametrize(("beta", "ratio"), [(0.9999, 78.9), (0.99, 2.5), (0.0, 1.0)])
def test_class_balanced_weights_are_those_of_effective_numbers(beta: float, ratio: float) -> None:
    alpha = choose_alpha("class-balanced", beta, "multiclass", COUNTS, 5050)
    assert isinstance(alpha, list)
    assert np.mean(alpha) == pytest.approx(1.0)
    assert alpha[1] / alpha[0] == pytest.approx(ratio, rel=0.02)


def test_balanced_weights_are_inverse_to_the_counts() -> None:
    assert choose_alpha("balanced", 0.9, "multiclass", COUNTS, 5050) == pytest.approx([2 / 101, 200 / 101])


def test_effective_numbers_go_from_one_to_the_count() -> None:
    assert effective_number(np.array([1, 7]), 0.999) == pytest.approx([1.0, (1 - 0.999**7) / 0.001])
    assert effective_number(np.array([7]), 1 - 1e-12)[0] == pytest.approx(7.0, rel=1e-3)


def test_sigmoid_weights_give_positives_and_negatives_of_each_class_the_same_sum() -> None:
    alpha = choose_alpha("balanced", 0.9, "multilabel", np.array([10, 50], np.int64), 100)
    assert alpha == pytest.approx([0.9, 0.5])
    assert choose_alpha("balanced", 0.9, "binary", np.array([80, 20], np.int64), 100) == pytest.approx(0.8)
    assert choose_alpha(0.25, 0.9, "binary", np.array([80, 20], np.int64), 100) == 0.25


def test_no_weighting_is_no_alpha_and_one_number_is_refused_for_softmax() -> None:
    assert choose_alpha("none", 0.9, "multiclass", COUNTS, 5050) is None
    with pytest.raises(InvalidInput, match="multilabel and binary"):
        choose_alpha(0.25, 0.9, "multiclass", COUNTS, 5050)


def test_targets_are_indices_or_zeros_and_ones() -> None:
    assert encode_targets([sample(2), sample(0)], "multiclass", 3).tolist() == [2, 0]
    assert encode_targets([sample(1), sample(0)], "binary", 2).tolist() == [[1.0], [0.0]]
    assert encode_targets([sample((0, 2)), sample(())], "multilabel", 3).tolist() == [[1, 0, 1], [0, 0, 0]]


def test_classes_are_counted_and_shown_with_their_imbalance() -> None:
    counts = count_classes([sample(0), sample(0), sample((0, 1))], 2)
    assert counts.tolist() == [3, 1]
    shown = format_counts(["ant", "bee"], counts, np.array([1, 0]))
    assert "imbalance 3.0 : 1" in shown and "ant" in shown
