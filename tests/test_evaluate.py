import numpy as np
import pytest

from models.calibration import log_softmax
from models.card import Calibration, LossSpec, TaskName
from models.losses import sigmoid_focal, softmax_focal
from scripts.evaluate import (
    QUANTILE_LEVELS,
    Floats,
    HeldOut,
    Report,
    average_precision,
    decision_thresholds,
    evaluate,
    format_report,
    score_epoch,
)

RNG = np.random.default_rng(7)


def softmax_case(count: int = 200, classes: int = 4) -> HeldOut:
    targets = RNG.integers(0, classes, count)
    logits = RNG.normal(size=(count, classes)) + 2.0 * np.eye(classes)[targets]
    return HeldOut("multiclass", logits, targets)


def sigmoid_case(task: TaskName, count: int = 200) -> HeldOut:
    classes = 1 if task == "binary" else 3
    targets = (RNG.random((count, classes)) < 0.3).astype(np.float64)
    return HeldOut(task, RNG.normal(size=(count, classes)) + 3.0 * targets - 2.0, targets)


def report_of(held: HeldOut, loss: LossSpec | None = None, calibration: Calibration | None = None) -> Report:
    count = held.truth.shape[1]
    labels = [f"class {k}" for k in range(count)]
    train = np.arange(10, 10 + count, dtype=np.int64)
    return evaluate(held, labels, train, 100, loss or LossSpec(), calibration or Calibration())


def naive_average_precision(p: Floats, truth: Floats) -> float:
    """Mean over positives of the precision among all that score at least as high."""
    return float(np.mean([truth[p >= p[k]].mean() for k in np.flatnonzero(truth)]))


def test_perfect_answers_score_one_and_have_no_calibration_error() -> None:
    targets = np.arange(40) % 4
    metrics = report_of(HeldOut("multiclass", 50.0 * np.eye(4)[targets], targets)).metrics
    assert metrics["accuracy"].value == metrics["macro_f1"].value == 1.0
    assert metrics["nll"].value == pytest.approx(0.0, abs=1e-9)
    assert metrics["ece"].value == pytest.approx(0.0, abs=1e-9)


def test_accuracy_f1_and_nll_are_those_of_their_definitions() -> None:
    held = softmax_case()
    report = report_of(held)
    predicted, given = held.logits.argmax(axis=1), np.asarray(held.targets)
    f1 = []
    for k in range(4):
        hits = int(((predicted == k) & (given == k)).sum())
        precision, recall = hits / (predicted == k).sum(), hits / (given == k).sum()
        f1.append(2 * precision * recall / (precision + recall))
        facts = report.classes[k]
        assert facts.precision == pytest.approx(precision)
        assert facts.recall == pytest.approx(recall)
        assert facts.f1 == pytest.approx(f1[k])
        assert facts.validation_count == (given == k).sum()
        assert facts.train_count == 10 + k
        assert facts.prior == pytest.approx((10 + k) / 100)
    assert report.metrics["accuracy"].value == pytest.approx((predicted == given).mean())
    assert report.metrics["macro_f1"].value == pytest.approx(np.mean(f1))
    nll = -log_softmax(held.logits)[np.arange(len(given)), given].mean()
    assert report.metrics["nll"].value == pytest.approx(nll)


def test_a_confidence_off_by_a_known_amount_is_the_calibration_error() -> None:
    logits = np.tile([np.log(0.9), np.log(0.1)], (100, 1))
    targets = np.array([0] * 60 + [1] * 40)
    assert report_of(HeldOut("multiclass", logits, targets)).metrics["ece"].value == pytest.approx(0.3)


def test_calibration_enters_the_metrics_but_not_the_uncalibrated_ones() -> None:
    held = softmax_case()
    plain, cooled = report_of(held).metrics, report_of(held, calibration=Calibration(temperature=3.0)).metrics
    assert cooled["nll_uncalibrated"] == plain["nll_uncalibrated"] == plain["nll"]
    assert cooled["nll"] != plain["nll"]
    assert cooled["ece_uncalibrated"] == plain["ece"]


def test_intervals_contain_the_value_and_shrink_with_more_images() -> None:
    few, many = report_of(softmax_case(50)).metrics, report_of(softmax_case(3000)).metrics
    for name in few:
        assert few[name].low <= few[name].value <= few[name].high
        assert many[name].high - many[name].low < few[name].high - few[name].low
    wide = few["accuracy"].high - few["accuracy"].low
    expected = 2 * 1.96 * np.sqrt(few["accuracy"].value * (1 - few["accuracy"].value) / 50)
    assert wide == pytest.approx(expected, rel=0.35)


def test_average_precision_agrees_with_its_definition_ties_included() -> None:
    truth = RNG.random(60) < 0.4
    p = RNG.integers(0, 8, 60) / 8.0
    ones = np.ones((1, 60))
    assert average_precision(ones, p, truth)[0] == pytest.approx(naive_average_precision(p, truth.astype(float)))
    assert average_precision(ones, truth.astype(float), truth)[0] == 1.0


def test_an_image_of_weight_two_counts_as_two_images() -> None:
    truth, p = RNG.random(30) < 0.5, RNG.random(30)
    twice = np.ones((1, 30))
    twice[0, 5] = 2.0
    again = average_precision(np.ones((1, 31)), np.append(p, p[5]), np.append(truth, truth[5]))
    assert average_precision(twice, p, truth) == pytest.approx(again)


def test_map_is_the_mean_over_classes_and_exact_match_needs_every_label() -> None:
    held = sigmoid_case("multilabel")
    report = report_of(held)
    truth = held.truth
    expected = np.mean([naive_average_precision(held.logits[:, k], truth[:, k].astype(float)) for k in range(3)])
    assert report.metrics["map"].value == pytest.approx(expected)
    thresholds = np.array([facts.decision_threshold for facts in report.classes])
    right = ((1 / (1 + np.exp(-held.logits)) >= thresholds) == truth).all(axis=1)
    assert report.metrics["exact_match"].value == pytest.approx(right.mean())


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_no_other_threshold_has_a_higher_f1(task: TaskName) -> None:
    held = sigmoid_case(task)
    p, truth = held.probabilities(Calibration()), held.truth
    found = decision_thresholds(task, p, truth)
    for k in range(1 if task == "binary" else 0, truth.shape[1]):

        def f1(threshold: float, k: int = k) -> float:
            named = p[:, k] >= threshold
            return float(2 * (named & truth[:, k]).sum() / (named.sum() + truth[:, k].sum()))

        assert f1(float(found[k])) == pytest.approx(max(f1(float(t)) for t in p[:, k]))
    if task == "binary":
        assert found[0] == pytest.approx(1.0 - found[1])


def test_thresholds_stay_at_a_half_where_positives_are_few() -> None:
    truth = np.zeros((50, 2), bool)
    truth[:4, 0] = truth[:20, 1] = True
    found = decision_thresholds("multilabel", RNG.random((50, 2)), truth)
    assert found[0] == 0.5 and found[1] != 0.5


def test_confidence_thresholds_are_the_mean_probability_of_the_images_labelled_so() -> None:
    held = softmax_case()
    p, given = np.exp(log_softmax(held.logits)), np.asarray(held.targets)
    for k, facts in enumerate(report_of(held).classes):
        assert facts.confidence_threshold == pytest.approx(p[given == k, k].mean())


def test_loss_quantiles_are_those_of_the_focal_loss_of_each_class() -> None:
    held, loss = softmax_case(), LossSpec(gamma=3.0, alpha=[1.0, 2.0, 0.5, 0.5], label_smoothing=0.1)
    values = softmax_focal(held.logits, held.targets, gamma=3.0, alpha=[1.0, 2.0, 0.5, 0.5]).values
    for k, facts in enumerate(report_of(held, loss).classes):
        assert facts.loss_quantiles == pytest.approx(np.quantile(values[held.targets == k], QUANTILE_LEVELS))
    binary = sigmoid_case("binary")
    losses = sigmoid_focal(binary.logits, binary.targets, gamma=2.0).values[:, 0]
    positive = report_of(binary).classes[1].loss_quantiles
    assert positive == pytest.approx(np.quantile(losses[binary.targets[:, 0] == 1], QUANTILE_LEVELS))


def test_a_class_without_validation_images_has_no_numbers_and_harms_none() -> None:
    held = softmax_case()
    logits = np.hstack([held.logits, np.full((200, 1), -50.0)])
    report = report_of(HeldOut("multiclass", logits, held.targets))
    last = report.classes[4]
    assert (last.precision, last.recall, last.f1, last.loss_quantiles) == (None, None, None, [])
    assert (last.validation_count, last.confidence_threshold) == (0, 0.5)
    assert report.metrics["macro_f1"].value == pytest.approx(report_of(held).metrics["macro_f1"].value)
    assert "class 4" in format_report(report)


def test_a_multilabel_set_without_any_positive_has_no_map() -> None:
    report = report_of(HeldOut("multilabel", RNG.normal(size=(20, 2)), np.zeros((20, 2))))
    assert "map" not in report.metrics
    assert report.metrics["nll"].value > 0


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_one_image_is_enough(task: TaskName) -> None:
    held = softmax_case(1) if task == "multiclass" else sigmoid_case(task, 1)
    assert np.isfinite([each.value for each in report_of(held).metrics.values()]).all()


def test_an_epoch_is_judged_by_macro_f1_and_by_nll_after_the_inverse_of_focal_loss() -> None:
    held = softmax_case()
    scores = score_epoch(held, gamma=2.0)
    calibrated = report_of(held, calibration=Calibration(gamma=2.0)).metrics
    for name in ("macro_f1", "nll"):
        assert scores[name].value == pytest.approx(calibrated[name].value)
        width = calibrated[name].high - calibrated[name].low
        assert scores[name].error == pytest.approx(width / (2 * 1.96), rel=0.35)
