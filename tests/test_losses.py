"""The numpy focal loss against the golden set, and as sentences that must hold of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from models.losses import binary_margin_focal, margin, reduced_gradient, sigmoid_focal, softmax_focal, total
from tests.golden import GAMMAS, Case, assert_close, cases

Floats = NDArray[np.float64]
TOLERANCE = {np.float64: (1e-12, 1e-290), np.float32: (2e-5, 1e-30)}
gammas = st.one_of(st.sampled_from((0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)), st.floats(0, 10))
wide_logits = arrays(np.float64, (4, 3), elements=st.floats(-1e4, 1e4))
logits_around_zero = arrays(np.float64, (4, 3), elements=st.floats(-30, 30))
LABELS = np.array([0, 2, 1, 1])
quick = settings(max_examples=60, deadline=None)


def batch(n: int = 50, classes: int = 5, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 4, (n, classes)), rng.integers(0, classes, n)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_every_golden_case_is_met(case: Case, dtype: type[np.floating]) -> None:
    rtol, atol = TOLERANCE[dtype]
    logits = case.logits.astype(dtype)
    terms = (softmax_focal if case.kind == "softmax" else sigmoid_focal)(logits, case.targets, **case.options())
    assert terms.values.dtype == terms.gradient.dtype == dtype
    loss: Any = terms.values
    gradient = terms.gradient
    if case.reduction != "none":
        loss, gradient = total(terms, case.reduction).value, reduced_gradient(terms, case.reduction)
    if case.expected["loss"] is None:
        assert loss is None and total(terms, case.reduction).denominator == 0
        assert not gradient.any()
    else:
        assert_close(loss, case.expected["loss"], rtol, atol, "loss")
        assert_close(gradient, case.expected["grad"], rtol, atol, "gradient")
    facts = {"log_pt": terms.log_pt, "log_1mpt": terms.log_1mpt}
    if terms.log_pt is not None:
        facts["pt"] = np.exp(terms.log_pt)
    for name in facts.keys() & case.expected.keys():
        wanted = np.asarray(case.expected[name], np.float64)
        assert_close(facts[name], wanted, rtol, atol, name)


@pytest.mark.parametrize("case", [c for c in cases() if "-half-" in c.id], ids=lambda case: case.id)
def test_half_precision_is_computed_in_float32(case: Case) -> None:
    run = softmax_focal if case.kind == "softmax" else sigmoid_focal
    terms = run(case.logits.astype(np.float16), case.targets, **case.options())
    assert terms.values.dtype == np.float32
    assert_close(terms.values, case.expected["loss"], 2e-5, 1e-30, "loss")
    assert_close(terms.gradient, case.expected["grad"], 2e-5, 1e-30, "gradient")


@pytest.mark.parametrize(
    ("gamma", "loss", "gradient"),
    [
        (0, 0.913015252399953, -0.598687660112452),
        (0.5, 0.706444724144159, -0.604986527088033),
        (1, 0.546610965106307, -0.577788639785926),
        (2, 0.327249239691304, -0.477244086899931),
    ],
)
def test_worked_example_of_logits_03_and_07(gamma: float, loss: float, gradient: float) -> None:
    terms = softmax_focal([[0.3, 0.7]], [0], gamma=gamma)
    np.testing.assert_allclose(terms.values, [loss], rtol=1e-14)
    np.testing.assert_allclose(terms.gradient, [[gradient, -gradient]], rtol=1e-14)


@quick
@given(logits_around_zero)
def test_gamma_0_is_cross_entropy(z: Floats) -> None:
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    terms = softmax_focal(z, LABELS, gamma=0)
    np.testing.assert_allclose(terms.values, -np.log(p[np.arange(4), LABELS]), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(terms.gradient, p - np.eye(3)[LABELS], rtol=1e-9, atol=1e-14)


@quick
@given(logits_around_zero, gammas)
def test_softmax_focal_is_binary_focal_of_the_margin(z: Floats, gamma: float) -> None:
    d = margin(z, LABELS)
    others = np.where(np.eye(3)[LABELS] == 1, -np.inf, z)
    np.testing.assert_allclose(d, z[np.arange(4), LABELS] - np.logaddexp.reduce(others, axis=1), atol=1e-12)
    expected = softmax_focal(z, LABELS, gamma=gamma)
    np.testing.assert_allclose(binary_margin_focal(d, gamma), expected.values, rtol=1e-13)
    assert expected.margin is not None
    np.testing.assert_array_equal(expected.margin, d)


@quick
@given(wide_logits, gammas, st.sampled_from((0.0, 0.1)))
def test_softmax_gradients_sum_to_zero(z: Floats, gamma: float, smoothing: float) -> None:
    gradient = softmax_focal(z, LABELS, gamma=gamma, label_smoothing=smoothing).gradient
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-13)


@quick
@given(arrays(np.float64, (4, 2), elements=st.floats(-300, 300)), gammas)
def test_softmax_of_two_classes_is_sigmoid_of_the_difference(z: Floats, gamma: float) -> None:
    labels = np.array([0, 1, 1, 0])
    two, one = softmax_focal(z, labels, gamma=gamma), sigmoid_focal(z[:, 1] - z[:, 0], labels, gamma=gamma)
    np.testing.assert_allclose(two.values, one.values, rtol=1e-13)
    np.testing.assert_allclose(two.gradient[:, 1], one.gradient, rtol=1e-13)


@quick
@given(arrays(np.int64, (4, 3), elements=st.integers(-50, 50)), st.integers(-(10**6), 10**6), gammas)
def test_adding_a_constant_to_a_row_changes_nothing(z: NDArray[np.int64], shift: int, gamma: float) -> None:
    here, there = softmax_focal(z, LABELS, gamma=gamma), softmax_focal(z + shift, LABELS, gamma=gamma)
    np.testing.assert_array_equal(here.values, there.values)
    np.testing.assert_array_equal(here.gradient, there.gradient)


@pytest.mark.parametrize("classes", [2, 7, 200, 20000])
def test_batch_mates_and_their_order_change_nothing(classes: int) -> None:
    z, y = batch(8000 // classes + 3, classes)
    whole = softmax_focal(z, y)
    order = np.random.default_rng(1).permutation(len(z))
    shuffled = softmax_focal(z[order], y[order])
    parts = [softmax_focal(z[i : i + 1], y[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(shuffled.values, whole.values[order], rtol=1e-13)
    np.testing.assert_allclose(shuffled.gradient, whole.gradient[order], rtol=1e-12)
    np.testing.assert_allclose([part.values[0] for part in parts], whole.values[:3], rtol=1e-13)


@quick
@given(wide_logits, gammas, st.sampled_from((np.float64, np.float32)))
def test_loss_and_gradient_are_finite_for_logits_up_to_1e4(z: Floats, gamma: float, dtype: type[np.floating]) -> None:
    logits = z.astype(dtype)
    marks = np.eye(3)[LABELS]
    soft = marks * 0.8 + 0.1
    runs = [softmax_focal(logits, LABELS, gamma=gamma), softmax_focal(logits, soft, gamma=gamma)]
    runs += [sigmoid_focal(logits, t, gamma=gamma, soft=s) for t in (marks, soft) for s in ("expected", "qfl")]
    runs += [sigmoid_focal(logits, soft, gamma=gamma, soft="interpolated")]
    for terms in runs:
        assert np.isfinite(terms.values).all() and (terms.values >= 0).all()
        assert np.isfinite(terms.gradient).all()


def test_permuting_classes_with_their_weights_permutes_the_gradient() -> None:
    z, y = batch()
    alpha, order = np.array([0.2, 1.0, 3.5, 0.0, 2.0]), np.array([3, 0, 4, 1, 2])
    here = softmax_focal(z, y, alpha=alpha)
    there = softmax_focal(z[:, order], np.argsort(order)[y], alpha=alpha[order])
    np.testing.assert_allclose(there.values, here.values, rtol=1e-13)
    np.testing.assert_allclose(there.gradient, here.gradient[:, order], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_every_gamma_ranks_samples_by_their_probability(gamma: float) -> None:
    z, y = batch(500)
    terms = softmax_focal(z, y, gamma=gamma)
    assert terms.log_pt is not None
    np.testing.assert_array_equal(np.argsort(terms.values), np.argsort(-terms.log_pt))


@quick
@given(logits_around_zero, gammas)
def test_a_one_hot_soft_target_is_the_hard_label(z: Floats, gamma: float) -> None:
    marks = np.eye(3)[LABELS]
    for soft, hard in (
        (softmax_focal(z, marks, gamma=gamma), softmax_focal(z, LABELS, gamma=gamma)),
        (sigmoid_focal(z, marks * 0.5 + 0.25, gamma=gamma), sigmoid_focal(z, marks, gamma=gamma, label_smoothing=0.5)),
    ):
        np.testing.assert_allclose(soft.values, hard.values, rtol=1e-11)
        np.testing.assert_allclose(soft.gradient, hard.gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("soft", ["expected", "interpolated", "qfl"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigmoid_soft_conventions_agree_on_0_and_1(gamma: float, soft: str) -> None:
    z, t = np.array([-8.0, -0.5, 3.0, 9.0, 0.1]), np.array([0.0, 1.0, 1.0, 0.0, 0.5])
    mixed = sigmoid_focal(z, t, gamma=gamma, soft=soft)
    hard = sigmoid_focal(z[:4], t[:4], gamma=gamma)
    assert mixed.log_pt is None
    np.testing.assert_allclose(mixed.values[:4], hard.values, rtol=1e-13)
    np.testing.assert_allclose(mixed.gradient[:4], hard.gradient, rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_rows_may_hold_nan_and_get_exactly_zero(smoothing: float) -> None:
    z, y = batch(6)
    kept = softmax_focal(z[1:], y[1:], label_smoothing=smoothing)
    z[0], y[0] = np.nan, -100
    terms = softmax_focal(z, y, ignore_index=-100, label_smoothing=smoothing)
    assert terms.values[0] == 0 and not terms.gradient[0].any() and not terms.valid[0] and terms.count == 5
    np.testing.assert_allclose(terms.gradient[1:], kept.gradient, rtol=1e-13)
    assert total(terms, "mean").value == pytest.approx(total(kept, "mean").value, rel=1e-13)
    elements = sigmoid_focal([np.inf, 1.0], [-1, 1], ignore_index=-1, label_smoothing=smoothing)
    assert elements.values[0] == elements.gradient[0] == 0 and elements.count == 1


def test_pictures_are_rows_with_the_class_axis_second() -> None:
    z, y = batch(2 * 3 * 4)
    picture = np.moveaxis(z.reshape(2, 3, 4, 5), -1, 1)
    flat, terms = softmax_focal(z, y), softmax_focal(picture, y.reshape(2, 3, 4))
    np.testing.assert_array_equal(terms.values, flat.values.reshape(2, 3, 4))
    np.testing.assert_array_equal(terms.gradient, np.moveaxis(flat.gradient.reshape(2, 3, 4, 5), -1, 1))
    soft = softmax_focal(picture, np.moveaxis(np.eye(5)[y].reshape(2, 3, 4, 5), -1, 1))
    np.testing.assert_allclose(soft.gradient, terms.gradient, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("rows", "classes"), [(50000, 3), (140, 1000), (2, 70000)])
def test_many_chunks_are_one_answer(rows: int, classes: int) -> None:
    z, y = batch(rows, classes)
    d = margin(z, y)
    np.testing.assert_allclose(softmax_focal(z, y).values, binary_margin_focal(d, 2.0), rtol=1e-13)
    t = (np.arange(z.size) % 3 == 0).reshape(z.shape)
    terms = sigmoid_focal(z, t, alpha=np.linspace(0, 1, classes))
    a = np.where(t, np.linspace(0, 1, classes), 1 - np.linspace(0, 1, classes))
    np.testing.assert_allclose(terms.values, a * binary_margin_focal(np.where(t, z, -z), 2.0), rtol=1e-13)
    assert terms.positives == t.sum()


def test_each_gradient_is_the_slope_of_its_loss() -> None:
    z, y = batch(3, 4)
    t = np.random.default_rng(3).random((3, 4))
    step = 1e-6

    def check(run: Any) -> None:
        slope = [
            (run(z + step * e).values.sum() - run(z - step * e).values.sum()) / (2 * step)
            for e in np.eye(12).reshape(12, 3, 4)
        ]
        np.testing.assert_allclose(run(z).gradient.reshape(-1), slope, rtol=1e-5, atol=1e-8)

    for gamma in GAMMAS:
        check(lambda x, g=gamma: softmax_focal(x, y, gamma=g, alpha=[1, 2, 0, 3.5]))
        check(lambda x, g=gamma: softmax_focal(x, t, gamma=g, alpha=[1, 2, 0, 3.5], label_smoothing=0.2))
        for soft in ("expected", "interpolated"):
            check(lambda x, g=gamma, s=soft: sigmoid_focal(x, t, gamma=g, alpha=0.3, soft=s, label_smoothing=0.1))
        check(lambda x, g=gamma: sigmoid_focal(x, t, gamma=g, soft="qfl"))


def test_reductions_name_what_they_divide_by() -> None:
    z, y = batch(6, 3)
    terms = softmax_focal(z, y, alpha=[1, 2, 3.0])
    weights = np.array([1, 2, 3.0])[y]
    assert terms.weights is not None
    np.testing.assert_array_equal(terms.weights, weights)
    reduced = total(terms, "weighted_mean")
    assert reduced.denominator_name == "weights" and reduced.denominator == weights.sum()
    assert reduced == total(terms, "mean_weighted")
    elements = sigmoid_focal(z, np.eye(3)[y])
    names = [total(elements, r).denominator_name for r in ("sum", "mean", "mean_positive", "batchmean")]
    assert names == ["none", "elements", "positives", "rows"]
    assert [total(elements, r).denominator for r in ("sum", "mean", "num_positive", "batchmean")] == [1, 18, 6, 6]


def test_nothing_at_all_sums_to_0_and_has_no_mean() -> None:
    terms = softmax_focal(np.zeros((0, 3)), [])
    assert total(terms, "sum").value == 0 and terms.gradient.shape == (0, 3) and terms.count == 0
    assert total(terms, "mean").value is None and total(terms, "mean_weighted").value is None
    assert total(sigmoid_focal(np.zeros((0, 3)), np.zeros((0, 3))), "num_positive").value == 0
    assert margin(np.zeros((0, 3)), []).shape == (0,)
