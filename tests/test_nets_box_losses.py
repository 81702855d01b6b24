"""The loss of a detector's batch: against the definitions, image by image, and what ignored places must not do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models.box_view import view_image
from models.boxes import UNCOUNTED, BoxLabels, decode_boxes, encode_boxes, make_anchors, match_anchors
from models.card import LossSpec
from models.class_logits import HostLogits
from models.detector_loss import detector_loss
from models.detector_spec import AnchorLevel, DetectorSpec
from models.losses import sigmoid_focal
from models.nets.box_losses import (
    BOX_LOSSES,
    BatchTargets,
    collect_targets,
    decode,
    detection_losses,
    find_matches,
    giou_loss,
    smooth_l1,
)
from models.task import ScoreOptions

SPEC = DetectorSpec(
    levels=[AnchorLevel(stride=8, sizes=[16.0, 20.0]), AnchorLevel(stride=16, sizes=[32.0, 40.0])],
    ratios=[0.5, 1.0, 2.0],
)
ANCHORS = make_anchors(SPEC, 64, 64)
CLASSES = 3
LOSS = LossSpec(gamma=2.0, alpha=0.5)


def boxes_of(*rows: tuple[float, float, float, float, int], ignored: int = -1) -> BoxLabels:
    table = np.array(rows, float).reshape(-1, 5)
    skip = np.arange(len(table)) == ignored
    return BoxLabels(table[:, :4], table[:, 4].astype(np.int64), skip, (None,) * len(table))


SCENES = (
    boxes_of((4, 4, 22, 25, 0), (30, 20, 60, 64, 2)),
    boxes_of(),
    boxes_of((10, 30, 29, 44, 1), (32, 32, 64, 64, 0), ignored=1),
)


def targets_of(scenes: tuple[BoxLabels, ...]) -> BatchTargets:
    return collect_targets(ANCHORS, scenes, [find_matches(ANCHORS, own, SPEC) for own in scenes])


def some_outputs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, len(ANCHORS), CLASSES, generator=rng) * 3 - 2
    return logits, torch.randn(count, len(ANCHORS), 4, generator=rng) * 0.3


def losses(logits: Tensor, deltas: Tensor, scenes: tuple[BoxLabels, ...], name: str = "giou") -> tuple[Tensor, Tensor]:
    anchors = torch.from_numpy(ANCHORS.astype(np.float32))
    return detection_losses(logits, deltas, targets_of(scenes), anchors, LOSS, name)


def giou_by_definition(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0.0) * max(high, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return float(common / union - (hull - union) / hull)


def expected(logits: Tensor, deltas: Tensor, scenes: tuple[BoxLabels, ...], name: str) -> tuple[float, float]:
    """Anchor by anchor, in float64, from the numpy modules."""
    classes, places = [], []
    for own, z, d in zip(scenes, logits.numpy(), deltas.numpy(), strict=True):
        found = match_anchors(ANCHORS, own.xyxy, SPEC, own.ignored)
        given = np.zeros(z.shape)
        learning = np.flatnonzero(found >= 0)
        given[learning, own.labels[found[learning]]] = 1.0
        values = np.asarray(sigmoid_focal(z.astype(np.float64), given, gamma=2.0, alpha=0.5).values)
        count = max(1, len(learning))
        classes.append(values[found != UNCOUNTED].sum() / count)
        total = 0.0
        for row in learning:
            box = own.xyxy[found[row]]
            if name == "giou":
                total += 1.0 - giou_by_definition(decode_boxes(d[row], ANCHORS[row]), box)
            else:
                gap = np.abs(d[row] - encode_boxes(box[None], ANCHORS[row : row + 1])[0])
                total += np.where(gap < 1 / 9, gap**2 * 4.5, gap - 1 / 18).sum()
        places.append(total / count)
    return float(np.mean(classes)), float(np.mean(places))


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_the_losses_are_the_definitions(name: str) -> None:
    logits, deltas = some_outputs(3)
    got = losses(logits, deltas, SCENES, name)
    want = expected(logits, deltas, SCENES, name)
    assert [float(each) for each in got] == pytest.approx(want, rel=2e-5)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_training_and_scoring_compute_the_same_loss(name: str) -> None:
    logits, deltas = some_outputs(3, seed=5)
    spec = SPEC.model_copy(update={"box_loss": name, "box_weight": 0.4})
    options = ScoreOptions(gamma=LOSS.gamma, alpha=LOSS.alpha)
    want = [
        detector_loss(view_image(HostLogits(z), d, ANCHORS), own.xyxy, own.labels, own.ignored, spec, options).value
        for own, z, d in zip(SCENES, logits.numpy(), deltas.numpy(), strict=True)
    ]
    classes, places = losses(logits, deltas, SCENES, name)
    assert float(classes + 0.4 * places) == pytest.approx(np.mean(want), rel=2e-5)


def test_an_image_has_its_loss_whatever_its_batch() -> None:
    logits, deltas = some_outputs(3)
    together = losses(logits, deltas, SCENES)
    alone = [losses(logits[k : k + 1], deltas[k : k + 1], SCENES[k : k + 1]) for k in range(3)]
    for part in (0, 1):
        mean = sum(float(each[part]) for each in alone) / 3
        assert float(together[part]) == pytest.approx(mean, rel=1e-5)


def test_places_that_do_not_count_get_no_gradient() -> None:
    logits, deltas = (each.requires_grad_(True) for each in some_outputs(3))
    classes, places = losses(logits, deltas, SCENES)
    torch.autograd.backward(classes + places)
    assert logits.grad is not None and deltas.grad is not None
    for k, own in enumerate(SCENES):
        found = match_anchors(ANCHORS, own.xyxy, SPEC, own.ignored)
        counted = torch.from_numpy(found != UNCOUNTED)
        assert bool((logits.grad[k][~counted] == 0).all()) and bool((logits.grad[k][counted] != 0).all())
        assert bool((deltas.grad[k][torch.from_numpy(found < 0)] == 0).all())
        assert bool((deltas.grad[k][torch.from_numpy(found >= 0)].abs().sum(1) > 0).all())
    assert (match_anchors(ANCHORS, SCENES[2].xyxy, SPEC, SCENES[2].ignored) == UNCOUNTED).sum() > 20


def test_a_batch_without_boxes_learns_background_alone() -> None:
    logits, deltas = (each.requires_grad_(True) for each in some_outputs(2))
    classes, places = losses(logits, deltas, (boxes_of(), boxes_of()))
    assert float(places.detach()) == 0.0 and float(classes.detach()) > 0.0
    torch.autograd.backward(classes + places)
    assert logits.grad is not None and bool((logits.grad > 0).all())


def test_perfect_answers_cost_nearly_nothing() -> None:
    targets = targets_of(SCENES)
    logits = torch.full((3, len(ANCHORS), CLASSES), -20.0)
    logits[targets.image, targets.anchor, targets.label] = 20.0
    deltas = torch.zeros(3, len(ANCHORS), 4)
    deltas[targets.image, targets.anchor] = targets.deltas
    for name in BOX_LOSSES:
        classes, places = losses(logits, deltas, SCENES, name)
        assert float(classes) < 1e-6 and float(places) < 1e-5


def test_half_precision_outputs_give_the_loss_in_float32() -> None:
    logits, deltas = some_outputs(3)
    want = losses(logits.bfloat16().float(), deltas.bfloat16().float(), SCENES)
    got = losses(logits.bfloat16(), deltas.bfloat16(), SCENES)
    assert all(each.dtype == torch.float32 for each in got)
    assert [float(each) for each in got] == pytest.approx([float(each) for each in want], rel=1e-5)


def test_one_alpha_per_class_weighs_that_class() -> None:
    logits, deltas = some_outputs(3)
    anchors = torch.from_numpy(ANCHORS.astype(np.float32))
    parts = [
        float(detection_losses(logits, deltas, targets_of(SCENES), anchors, LossSpec(alpha=alpha), "giou")[0])
        for alpha in ([0.5, 0.5, 0.5], 0.5, [0.9, 0.5, 0.5])
    ]
    assert parts[0] == pytest.approx(parts[1], rel=1e-6)
    assert parts[2] != pytest.approx(parts[1], rel=1e-2)


def test_decoding_is_that_of_numpy_and_limits_growth() -> None:
    deltas = np.random.default_rng(0).normal(0, 2, (len(ANCHORS), 4)).astype(np.float32)
    deltas[0, 2:] = 50.0
    got = decode(torch.from_numpy(deltas), torch.from_numpy(ANCHORS.astype(np.float32))).numpy()
    assert got == pytest.approx(decode_boxes(deltas, ANCHORS), rel=1e-4, abs=1e-3)


corner = st.floats(0, 50)
side = st.floats(1, 40)


@given(st.lists(st.tuples(corner, corner, side, side, corner, corner, side, side), min_size=1, max_size=8))
def test_giou_is_its_definition(rows: list[tuple[float, ...]]) -> None:
    table = np.array(rows, np.float64)
    first = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
    second = np.concatenate([table[:, 4:6], table[:, 4:6] + table[:, 6:]], axis=1)
    got = giou_loss(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    want = [1.0 - giou_by_definition(a, b) for a, b in zip(first, second, strict=True)]
    assert got == pytest.approx(np.array(want), abs=1e-9)
    assert (got >= -1e-12).all() and (got <= 2.0).all()


def test_smooth_l1_meets_at_beta() -> None:
    gaps = torch.tensor([[1 / 9 - 1e-6, 0.0, 0.0, 0.0], [1 / 9 + 1e-6, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    got = smooth_l1(gaps, torch.zeros(3, 4))
    assert got.tolist() == pytest.approx([1 / 18, 1 / 18, 2 * (1 - 1 / 18)], abs=2e-6)
