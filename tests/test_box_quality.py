"""Signs of wrong boxes: the formulas written out as loops, their invariances, and that they find what was spoilt."""

import dataclasses
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.box_quality import BoxSigns, box_signs, swap_matrix
from models.box_view import own_anchors, view_image
from models.boxes import BoxLabels, Floats, box_iou
from models.class_logits import HostLogits
from models.detector_spec import DetectorSpec
from models.losses import sigmoid_focal
from tests.fake_detector import ANCHORS, SPEC, Scene, average_precision, boxes_of, make_scene, signs_of, spoil

CONFUSED = SPEC.model_copy(update={"confusion": (np.eye(5) * 0.6 + np.roll(np.eye(5), 1, axis=1) * 0.4).tolist()})
seeds = st.integers(0, 40)


def subset(labels: BoxLabels, rows: NDArray[np.intp]) -> BoxLabels:
    return boxes_of(labels.xyxy[rows], labels.labels[rows])


def assert_same(first: BoxSigns, second: BoxSigns, atol: float, factor: float = 1.0) -> None:
    for field in fields(BoxSigns):
        want = getattr(second, field.name) * (factor if field.name == "suggested_box" else 1)
        scale = factor if field.name == "suggested_box" else 1.0
        assert np.allclose(getattr(first, field.name), want, atol=atol * scale, rtol=1e-6, equal_nan=True), field.name


def rows_of(signs: BoxSigns, rows: NDArray[np.intp]) -> BoxSigns:
    return BoxSigns(*(getattr(signs, field.name)[rows] for field in fields(BoxSigns)))


def by_hand(scene: Scene, box: Floats, y: int, spec: DetectorSpec) -> dict[str, float]:
    """The formulas for one box, anchor by anchor."""
    view, classes = scene.view, scene.cls_logits.shape[1]
    overlap, r = box_iou(ANCHORS, box[None])[:, 0], box_iou(view.boxes, box[None])[:, 0]
    own = [a for a in range(len(ANCHORS)) if overlap[a] >= 0.5 - 1e-5 or overlap[a] >= overlap.max() - 1e-5]
    p, pa = 1.0 / (1.0 + np.exp(-scene.cls_logits.astype(float))), view.sure
    near = max([pa[a] for a in range(len(pa)) if r[a] >= 0.25], default=0.0)
    on = max([pa[a] for a in range(len(pa)) if r[a] >= 0.5], default=0.0)
    pull = sum(pa[a] * (1 - r[a]) for a in own) / sum(pa[a] for a in own)
    nearby = [a for a in range(len(pa)) if r[a] >= 0.2]
    fit = r[max(nearby, key=lambda a: (1 - np.prod(1 - p[a])) * r[a] ** 0.5)] if nearby else 0.0
    best = view.boxes[max(nearby, key=lambda a: (1 - np.prod(1 - p[a])) * r[a] ** 0.5)] if nearby else box
    sides, best_sides = box[2:] - box[:2], best[2:] - best[:2]
    weights = pa[own] / pa[own].sum()
    middle = weights @ view.boxes[own]
    pi = np.array([sum(p[a, k] for a in own) + 1e-6 for k in range(classes)])
    pi /= pi.sum()
    likely = np.array([pi[k] * swap_matrix(spec, classes)[k, y] for k in range(classes)])
    losses = [sigmoid_focal(scene.cls_logits[a].astype(float), np.eye(classes)[y]).values.sum() for a in own]
    others = [k for k in range(classes) if k != y]
    return {
        "located": near * (pull + 1 - fit) / 2,
        "pull": pull,
        "fit": fit,
        "aside": max(abs((best[:2] + best[2:] - box[:2] - box[2:]) / 2 / sides)),
        "resized": max(abs(np.log(best_sides / sides))),
        "firm": max(r[a] for a in range(len(pa)) if pa[a] >= near / 2),
        "scatter": float(np.mean(np.sqrt(weights @ (view.boxes[own] - middle) ** 2) / np.tile(sides, 2))),
        "swapped": (1 - pi[y] + max(pi[others])) / 2,
        "doubted": 1 - likely[y] / likely.sum(),
        "spurious": 1 - max(max(pa[own]), on),
        "focal": float(np.mean(losses)),
        "given": p[own, y].mean(),
        "other": p[own][:, others].max(axis=1).mean(),
        "on_given": max([p[a, y] for a in range(len(pa)) if r[a] >= 0.5], default=0.0),
        "on_other": max([p[a, others].max() for a in range(len(pa)) if r[a] >= 0.5], default=0.0),
        "best_iou": max([r[a] for a in range(len(pa)) if pa[a] > 0.05], default=0.0),
        "suggested_label": int(pi.argmax()),
    }


@pytest.mark.parametrize("spec", [SPEC, CONFUSED])
def test_signs_are_those_of_the_formulas(spec: DetectorSpec) -> None:
    scene = make_scene(3)
    labels = spoil(scene, 3).labels
    signs = signs_of(scene, labels, spec)
    assert len(labels) >= 4
    for k in range(len(labels)):
        for name, want in by_hand(scene, labels.xyxy[k], int(labels.labels[k]), spec).items():
            assert getattr(signs, name)[k] == pytest.approx(want, abs=1e-9), name


@given(seeds)
def test_a_box_scores_the_same_in_any_order_and_any_company(seed: int) -> None:
    scene = make_scene(seed)
    labels = spoil(scene, seed).labels
    rows = np.random.default_rng(seed).permutation(len(labels))
    whole = signs_of(scene, labels)
    assert_same(signs_of(scene, subset(labels, rows)), rows_of(whole, rows), 1e-12)
    for k in range(len(labels)):
        alone = np.array([k])
        assert_same(signs_of(scene, subset(labels, alone)), rows_of(whole, alone), 1e-12)


@given(seeds)
def test_the_order_of_anchors_has_no_part(seed: int) -> None:
    scene = make_scene(seed)
    order = np.random.default_rng(seed).permutation(len(ANCHORS))
    view = view_image(HostLogits(scene.cls_logits[order]), scene.box_deltas[order], ANCHORS[order])
    owned, _ = own_anchors(view, scene.truth.xyxy, SPEC)
    assert_same(box_signs(view, owned, scene.truth.xyxy, scene.truth.labels, SPEC), signs_of(scene, scene.truth), 1e-9)


@given(seeds, st.sampled_from([0.01, 0.37, 7.3, 1000.0]))
def test_signs_do_not_depend_on_the_scale_of_pixels(seed: int, factor: float) -> None:
    scene = make_scene(seed)
    labels = spoil(scene, seed).labels
    # float32 on the way, as pixels come: IoUs of exactly .5 must not fall on either side
    boxes = np.asarray(labels.xyxy, np.float32)
    scaled, anchors = np.asarray(boxes * np.float32(factor), np.float64), np.asarray(ANCHORS * factor, np.float32)
    view = view_image(HostLogits(scene.cls_logits), scene.box_deltas, anchors.astype(np.float64))
    owned, _ = own_anchors(view, scaled, SPEC)
    want = signs_of(scene, dataclasses.replace(labels, xyxy=boxes.astype(np.float64)))
    assert_same(box_signs(view, owned, scaled, labels.labels, SPEC), want, 2e-6, factor)


@pytest.mark.parametrize("factor", [0.01, 0.37, 7.3, 1000.0])
def test_rounding_decides_nothing_where_ious_are_exactly_a_half(factor: float) -> None:
    """Predictions are the anchors, and boxes are halves of some: own anchors and .5 are ties all over."""
    scene = dataclasses.replace(make_scene(5), box_deltas=np.zeros((len(ANCHORS), 4), np.float32))
    boxes = ANCHORS[300:900:7].copy()
    boxes[:, 3] = (boxes[:, 1] + boxes[:, 3]) / 2.0
    labels = boxes_of(boxes, np.arange(len(boxes)) % 5)
    small = [np.asarray(np.asarray(part * factor, np.float32), np.float64) for part in (ANCHORS, boxes)]
    view = view_image(HostLogits(scene.cls_logits), scene.box_deltas, small[0])
    owned, _ = own_anchors(view, small[1], SPEC)
    assert_same(box_signs(view, owned, small[1], labels.labels, SPEC), signs_of(scene, labels), 2e-6, factor)


def test_large_inputs_are_worked_on_in_parts_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(5)
    want = signs_of(scene, scene.truth)
    monkeypatch.setattr("models.boxes._CELLS_AT_ONCE", 3)
    assert_same(signs_of(scene, scene.truth), want, 1e-12)


def test_a_single_class_is_never_swapped() -> None:
    signs = signs_of(make_scene(1, classes=1), make_scene(1, classes=1).truth)
    assert not signs.swapped.any() and not signs.doubted.any() and not signs.other.any() and not signs.on_other.any()


def test_no_boxes_have_no_signs() -> None:
    signs = signs_of(make_scene(1), boxes_of([], []))
    assert all(len(getattr(signs, field.name)) == 0 for field in fields(BoxSigns))
    assert signs.suggested_box.shape == (0, 4)


def test_signs_are_finite_where_logits_are_extreme() -> None:
    scene = make_scene(2)
    for level in (-1e4, 1e4):
        signs = signs_of(dataclasses.replace(scene, cls_logits=np.full_like(scene.cls_logits, level)), scene.truth)
        assert all(np.isfinite(getattr(signs, field.name)).all() for field in fields(BoxSigns)[:-1])


def test_a_box_that_fits_is_neither_aside_nor_resized_and_one_that_does_not_is_by_as_much() -> None:
    scene = dataclasses.replace(make_scene(2), box_deltas=np.zeros((len(ANCHORS), 4), np.float32))
    logits = np.full_like(scene.cls_logits, -9.0)
    logits[500, 0] = 6.0
    scene = dataclasses.replace(scene, cls_logits=logits)
    box = ANCHORS[500]
    wide, high = box[2:] - box[:2]
    shifted, grown = box + np.array([0.2 * wide, 0.1 * high] * 2), box + np.array([0.0, 0.0, 0.0, 0.5 * high])
    signs = signs_of(scene, boxes_of([box, shifted, grown], [0, 0, 0]))
    assert signs.aside == pytest.approx([0.0, 0.2, 1.0 / 6.0]) and signs.resized == pytest.approx(
        [0.0, 0.0, np.log(1.5)]
    )
    assert signs.firm == pytest.approx([1.0, 0.72 / 1.28, 1.0 / 1.5])


def test_rows_of_the_swap_matrix_sum_to_one_and_lean_to_what_is_confused() -> None:
    plain, leaning = swap_matrix(SPEC, 5), swap_matrix(CONFUSED, 5)
    assert np.allclose(plain.sum(axis=1), 1.0) and np.allclose(leaning.sum(axis=1), 1.0)
    assert np.allclose(np.diag(leaning), 0.9) and leaning[0, 1] == pytest.approx(0.05 + 0.0125)
    sure = SPEC.model_copy(update={"confusion": np.eye(5).tolist()})
    assert np.allclose(swap_matrix(sure, 5), plain)


def test_each_sign_finds_what_it_is_the_sign_of() -> None:
    found = list[tuple[BoxSigns, NDArray[np.int64]]]()
    for seed in range(60):
        scene = make_scene(seed)
        noisy = spoil(scene, seed)
        found.append((signs_of(scene, noisy.labels), noisy.causes))
    causes = np.concatenate([part[1] for part in found])
    for name, cause, least in (("located", 1, 0.75), ("swapped", 2, 0.75), ("doubted", 2, 0.7), ("spurious", 3, 0.95)):
        scores = np.concatenate([getattr(part[0], name) for part in found])
        assert (causes == cause).sum() >= 10
        assert average_precision(causes == cause, scores) > least, name
    focal = np.concatenate([part[0].focal for part in found])
    assert average_precision(causes > 0, focal) > 0.7


def test_what_is_suggested_is_nearer_to_the_truth_than_what_was_given() -> None:
    better, right = list[float](), list[bool]()
    for seed in range(60):
        scene = make_scene(seed)
        noisy = spoil(scene, seed)
        signs, truth = signs_of(scene, noisy.labels), scene.truth
        for k in np.flatnonzero(noisy.causes == 1):
            true = truth.xyxy[noisy.origin[k]][None]
            iou = box_iou(np.stack([signs.suggested_box[k], noisy.labels.xyxy[k]]), true)[:, 0]
            better.append(float(iou[0] - iou[1]))
        right += (signs.suggested_label == truth.labels[noisy.origin])[noisy.causes == 2].tolist()
    assert np.mean(better) > 0.2 and np.mean(right) > 0.7
