"""ObjectLab: cleanlab's numbers where its definition is sound, other ones exactly where it is not."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.boxes import Floats, Indices
from models.objectlab import LEAST, ObjectLab, objectlab_scores, soft_minimum

SIZE = (640, 480)


@dataclass(frozen=True)
class Picture:
    """Given boxes (M, 4) with classes, detections (P, 4) with classes and scores."""

    boxes: Floats
    labels: Indices
    predicted: Floats
    predicted_labels: Indices
    scores: Floats

    def ours(self, size: tuple[int, int] = SIZE, factor: float = 1.0) -> ObjectLab:
        return objectlab_scores(
            self.boxes * factor, self.labels, self.predicted * factor, self.predicted_labels, self.scores, size
        )


def picture(seed: int, classes: int = 3) -> Picture:
    """Boxes, some of them swapped, moved, left out, drawn twice or upon nothing; sure and unsure detections."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 400, (8, 2))
    true = np.concatenate([corner, corner + rng.uniform(20, 150, (8, 2))], axis=1)
    names = rng.integers(0, classes, 8)
    boxes, labels = true[:6] + rng.normal(0, 6, (6, 4)), names[:6].copy()
    labels[0] = (labels[0] + 1) % classes
    twice = np.concatenate([boxes, boxes[1:2]]), np.append(labels, (labels[1] + 1) % classes)
    seen = np.concatenate([true[1:] + rng.normal(0, 2, (7, 4)), true[:3] + rng.normal(0, 30, (3, 4))])
    scores = rng.choice([0.3, 0.5, 0.7, 0.95, 0.97, 0.999], 10)
    return Picture(*twice, seen, np.append(names[1:], rng.integers(0, classes, 3)), scores)


def cleanlabs(found: Picture, least: float | None) -> tuple[Floats, Floats, Floats, float]:
    """cleanlab's three scores of one image in its own words; least: m, or None for the data set's own."""
    rank = pytest.importorskip("cleanlab.object_detection.rank")
    boxes = np.concatenate([found.predicted, found.scores[:, None]], axis=1)
    given_labels = [{"bboxes": found.boxes, "labels": found.labels}]
    predictions = np.empty(1, object)
    predictions[0] = np.array([*[boxes[found.predicted_labels == k] for k in range(4)], None], object)[:-1]
    parts = rank._get_valid_inputs_for_compute_scores(0.9, given_labels, list(predictions))
    order = np.argsort(found.predicted_labels, kind="stable")
    if least is not None:
        parts[0]["min_possible_similarity"] = least
    over = rank.compute_overlooked_box_scores(auxiliary_inputs=parts, high_probability_threshold=0.95, alpha=0.9)[0]
    bad = rank.compute_badloc_box_scores(auxiliary_inputs=parts, low_probability_threshold=0.5, alpha=0.9)[0]
    swap = rank.compute_swap_box_scores(auxiliary_inputs=parts, high_probability_threshold=0.95, alpha=0.9)[0]
    kinds = [rank.pool_box_scores_per_image([part])[0] for part in (over, bad, swap)]
    unsorted = np.empty(len(order))
    unsorted[order] = over
    return unsorted, bad, swap, float(np.exp(np.mean(np.log(1e-100 + np.array(kinds)))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(12))
def test_scores_are_cleanlabs(seed: int) -> None:
    found = picture(seed)
    over, bad, swap, image = cleanlabs(found, LEAST)
    ours = found.ours()
    assert np.allclose(ours.overlooked, over, atol=1e-6, equal_nan=True)
    assert np.allclose(ours.badly_located, bad, atol=1e-6) and np.allclose(ours.swapped, swap, atol=1e-6)
    assert ours.image == pytest.approx(image, abs=1e-6)


def test_the_pictures_have_all_that_is_scored() -> None:
    ours = [picture(seed).ours() for seed in range(12)]
    for scores in (
        np.concatenate([one.overlooked for one in ours]),
        np.concatenate([one.badly_located for one in ours]),
        np.concatenate([one.swapped for one in ours]),
    ):
        assert (scores < 0.9).any() and ((scores == 1.0) | np.isnan(scores)).any()


@pytest.fixture
def swap() -> Picture:
    """One box, perfectly found, as another class."""
    box = np.array([[100.0, 100.0, 200.0, 200.0]])
    return Picture(box, np.array([0]), box, np.array([1]), np.array([0.99]))


@pytest.mark.filterwarnings("ignore")
def test_a_perfect_swap_alone_is_found_here_and_not_there(swap: Picture) -> None:
    assert cleanlabs(swap, None)[2].tolist() == [1.0]
    assert swap.ours().swapped.tolist() == [LEAST]


@pytest.mark.filterwarnings("ignore")
def test_a_score_does_not_change_with_the_size_of_a_picture_and_theirs_does() -> None:
    found = picture(3)
    small = Picture(found.boxes / 20, found.labels, found.predicted / 20, found.predicted_labels, found.scores)
    here, there = found.ours(), small.ours((32, 24))
    for name in ("overlooked", "badly_located", "swapped"):
        assert np.allclose(getattr(here, name), getattr(there, name), atol=1e-12, equal_nan=True)
    theirs = cleanlabs(found, LEAST), cleanlabs(small, LEAST)
    assert np.abs(theirs[0][1] - theirs[1][1]).max() > 0.01


@pytest.mark.filterwarnings("ignore")
def test_a_box_upon_nothing_is_sound_to_both() -> None:
    lonely = Picture(
        np.array([[10.0, 10.0, 50.0, 50.0]]), np.array([0]), np.array([[300.0, 300.0, 400.0, 400.0]]), np.array([0]),
        np.array([0.6]),
    )  # fmt: skip
    ours = lonely.ours()
    assert (ours.badly_located.tolist(), ours.swapped.tolist()) == ([1.0], [1.0])
    assert [part.tolist() for part in cleanlabs(lonely, LEAST)[1:3]] == [[1.0], [1.0]]


@given(st.integers(0, 50))
def test_an_image_alone_scores_as_in_any_order_of_its_boxes(seed: int) -> None:
    found, rng = picture(seed), np.random.default_rng(seed)
    rows: NDArray[np.intp] = rng.permutation(len(found.boxes))
    columns = rng.permutation(len(found.scores))
    mixed = Picture(
        found.boxes[rows], found.labels[rows], found.predicted[columns], found.predicted_labels[columns],
        found.scores[columns],
    )  # fmt: skip
    assert np.allclose(mixed.ours().swapped, found.ours().swapped[rows])
    assert np.allclose(mixed.ours().overlooked, found.ours().overlooked[columns], equal_nan=True)
    assert mixed.ours().image == pytest.approx(found.ours().image)


def test_no_boxes_and_no_detections_are_sound() -> None:
    nothing = np.zeros(0, np.int64)
    found = objectlab_scores([], nothing, np.zeros((0, 4)), nothing, np.zeros(0), SIZE)
    assert found.image == pytest.approx(1.0) and len(found.overlooked) == len(found.swapped) == 0
    box = [[10.0, 10.0, 50.0, 50.0]]
    unlabelled = objectlab_scores([], nothing, box, np.array([1]), np.array([0.96]), SIZE)
    assert unlabelled.overlooked == pytest.approx([LEAST * 0.04]) and unlabelled.image < 0.05
    unseen = objectlab_scores(box, np.array([1]), [], nothing, np.zeros(0), SIZE)
    assert (unseen.badly_located.tolist(), unseen.swapped.tolist()) == ([1.0], [1.0])


def test_the_soft_minimum_leans_to_the_least() -> None:
    assert soft_minimum(np.array([0.2, 1.0])) == pytest.approx((0.2 + np.exp(-8)) / (1 + np.exp(-8)))
    assert soft_minimum(np.array([np.nan, 0.4])) == pytest.approx(0.4)
    assert soft_minimum(np.array([np.nan])) == 1.0
