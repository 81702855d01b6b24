"""Losses of predicted boxes, against torch's and torchvision's definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.box_losses import BETA, giou_loss, smooth_l1
from tests.test_boxes import some_boxes


def test_smooth_l1_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 0.3, (2, 200, 4))
    theirs = torch.nn.functional.smooth_l1_loss(*map(torch.tensor, (first, second)), beta=BETA, reduction="none")
    assert smooth_l1(first, second) == pytest.approx(theirs.sum(dim=1).numpy(), abs=1e-14)


def test_smooth_l1_of_known_gaps() -> None:
    found = smooth_l1(np.array([[0, 0, 0, 0], [BETA, 0, 0, 0], [1, -1, 0, 0], [1e300, 0, 0, 0]]), np.zeros((4, 4)))
    assert found == pytest.approx([0.0, BETA / 2, 2 - BETA, 1e300])


def test_giou_of_known_boxes() -> None:
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], float)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [2, 2, 4, 4]], float)
    assert giou_loss(first, second) == pytest.approx([0.0, 2 / 3, 1 + 1 / 3, 0.96])


def test_giou_of_empty_boxes_is_finite() -> None:
    point = np.array([[3.0, 3.0, 3.0, 3.0]])
    assert giou_loss(point, point) == pytest.approx([1.0])
    assert np.isfinite(giou_loss(point, np.array([[5.0, 5.0, 6.0, 6.0]]))).all()


@given(st.integers(0, 50), st.sampled_from([0.01, 7.3]))
def test_giou_is_symmetric_bounded_and_without_scale(seed: int, factor: float) -> None:
    first, second = some_boxes(10, seed), some_boxes(10, seed + 1000)
    loss = giou_loss(first, second)
    assert ((loss >= 0.0) & (loss <= 2.0)).all()
    assert np.allclose(loss, giou_loss(second, first)) and np.allclose(loss, giou_loss(first * factor, second * factor))
