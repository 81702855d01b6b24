"""What is measured on held-out images: metrics with confidence intervals, and the facts of each class for the card.

A binary task counts as two exclusive classes whose prediction follows a threshold instead of the larger probability,
so that one set of formulas, on arrays (N, K), serves every task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.calibration import probabilities
from models.card import Calibration, ClassFacts, Estimate, LossSpec, ModelCard, TaskName
from models.losses import sigmoid_focal, softmax_focal

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_REPLICATES = 500
_CHUNK = 50
_BINS = 15
_FEW = 5  # a threshold is not tuned on fewer positives
_TINY = float(np.finfo(np.float64).tiny)
QUANTILE_LEVELS: list[float] = list(ModelCard.model_fields["quantile_levels"].default)


@dataclass(frozen=True)
class HeldOut:
    """The net's answers for held-out images.

    Attributes:
        task: what the labels mean.
        logits: (N, K) float64, N >= 1; one column for a binary task.
        targets: (N,) class indices; for sigmoid tasks (N, K) 0 and 1.
    """

    task: TaskName
    logits: Floats
    targets: NDArray[np.intp] | Floats

    @property
    def activation(self) -> str:
        """What turns the logits into probabilities."""
        return "softmax" if self.task == "multiclass" else "sigmoid"

    @property
    def truth(self) -> Bools:
        """(N, classes) whether each image carries each class; two classes for a binary task."""
        if self.task == "multiclass":
            return np.asarray(self.targets[:, None] == np.arange(self.logits.shape[1]))
        present = np.asarray(self.targets) > 0.5
        return np.hstack([~present, present]) if self.task == "binary" else present

    def probabilities(self, calibration: Calibration) -> Floats:
        """(N, classes) under a calibration; two classes for a binary task."""
        p = probabilities(self.logits, self.activation, calibration)
        return np.hstack([1.0 - p, p]) if self.task == "binary" else p


@dataclass(frozen=True)
class Score:
    """A score of one epoch, and its standard error over the draw of the images."""

    value: float
    error: float


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        metrics: by name; `nll` and `ece` are of calibrated probabilities, `*_uncalibrated` of the logits as they are.
        classes: in the order of the labels.
    """

    metrics: dict[str, Estimate]
    classes: list[ClassFacts]


def score_epoch(held: HeldOut, gamma: float) -> dict[str, Score]:
    """The two scores an epoch is judged by: macro_f1 and nll (after focal loss's inverse, without a temperature)."""
    p, truth = held.probabilities(Calibration(gamma=gamma)), held.truth
    predicted = _predict(held.task, p, np.full(truth.shape[1], 0.5))
    nll = _row_nll(held.task, p, truth)
    draws = np.concatenate([np.ones((1, len(truth))), _draw_weights(np.random.default_rng(0), len(truth))])
    f1 = _macro_f1(draws, truth, predicted)
    return {
        "macro_f1": Score(float(f1[0]), float(np.nanstd(f1[1:]))),
        "nll": Score(float(nll.mean()), float(nll.std() / np.sqrt(len(nll)))),
    }


def evaluate(
    held: HeldOut, labels: Sequence[str], train_counts: NDArray[np.int64], train_total: int, loss: LossSpec,
    calibration: Calibration,
) -> Report:  # fmt: skip
    """Measures held-out images.

    Args:
        held: the net's answers.
        labels: class names.
        train_counts: (classes,) training images of each.
        train_total: training images.
        loss: of training; its values give the quantiles.
        calibration: fitted on the same images.

    Returns:
        Metrics with 95 % bootstrap intervals, and the facts of each class. Thresholds are tuned on these images.
    """
    p, truth = held.probabilities(calibration), held.truth
    thresholds = decision_thresholds(held.task, p, truth)
    predicted = _predict(held.task, p, thresholds)
    raw = held.probabilities(Calibration())
    hits = (truth & predicted).sum(axis=0)
    named, actual = predicted.sum(axis=0), truth.sum(axis=0)
    losses = _class_losses(held, loss)
    classes = [
        ClassFacts(
            label=label,
            train_count=int(train_counts[k]),
            prior=float(train_counts[k] / max(1, train_total)),
            decision_threshold=float(thresholds[k]),
            confidence_threshold=float(p[truth[:, k], k].mean()) if actual[k] else 0.5,
            precision=float(hits[k] / named[k]) if named[k] else None,
            recall=float(hits[k] / actual[k]) if actual[k] else None,
            f1=float(2 * hits[k] / (named[k] + actual[k])) if named[k] + actual[k] else None,
            validation_count=int(actual[k]),
            loss_quantiles=np.quantile(losses[k], QUANTILE_LEVELS).tolist() if len(losses[k]) else [],
        )
        for k, label in enumerate(labels)
    ]
    return Report(measure(held.task, p, raw, truth, predicted), classes)


def decision_thresholds(task: TaskName, p: Floats, truth: Bools) -> Floats:
    """The thresholds of highest F1, (classes,); 0.5 for a multiclass task and where positives are fewer than 5."""
    count = truth.shape[1]
    if task == "multiclass":
        return np.full(count, 0.5)
    if task == "binary":
        positive = _best_threshold(p[:, 1], truth[:, 1])
        return np.array([1.0 - positive, positive])
    return np.array([_best_threshold(p[:, k], truth[:, k]) for k in range(count)])


def average_precision(weights: Floats, p: Floats, truth: Bools) -> Floats:
    """Average precision of one class, ties in p counted as one step.

    Args:
        weights: (B, N) how often each image counts in each replicate.
        p: (N,) scores.
        truth: (N,) whether each is a positive.

    Returns:
        (B,), NaN in a replicate without positives.
    """
    order = np.argsort(-p, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))
    ordered = weights[:, order]
    seen = np.cumsum(ordered, axis=1)[:, ends]
    hits = np.cumsum(ordered * truth[order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((gained * hits / np.maximum(seen, 1e-300)).sum(axis=1) / hits[:, -1])


def measure(task: TaskName, p: Floats, raw: Floats, truth: Bools, predicted: Bools) -> dict[str, Estimate]:
    """Every metric with its 95 % interval from 500 bootstrap replicates over images.

    Args:
        task: what the labels mean.
        p: (N, classes) calibrated probabilities.
        raw: (N, classes) uncalibrated ones.
        truth: (N, classes) whether each image carries each class.
        predicted: (N, classes) whether it is predicted.
    """
    count = len(truth)
    points = _metrics(np.ones((1, count)), task, p, raw, truth, predicted)
    rng = np.random.default_rng(0)
    chunks = [_metrics(_draw_weights(rng, count), task, p, raw, truth, predicted) for _ in range(_REPLICATES // _CHUNK)]
    out = {}
    for name, point in points.items():
        value = float(point[0])
        draws = np.concatenate([chunk[name] for chunk in chunks])
        if np.isfinite(value) and np.isfinite(draws).any():
            low, high = np.nanquantile(draws, [0.025, 0.975]).tolist()
            out[name] = Estimate(value=value, low=min(low, value), high=max(high, value))
    return out


def format_report(report: Report) -> str:
    """The report as text: a table of classes, then the metrics."""
    width = max(5, *(len(facts.label) for facts in report.classes))
    lines = [f"{'class':{width}}  {'train':>7}  {'valid':>6}  precision  recall     f1"]
    for facts in report.classes:
        rates = [f"{rate:6.3f}" if rate is not None else "     -" for rate in (facts.precision, facts.recall, facts.f1)]
        lines.append(
            f"{facts.label:{width}}  {facts.train_count:7d}  {facts.validation_count:6d}  "
            f"   {rates[0]}  {rates[1]} {rates[2]}"
        )
    for name, each in report.metrics.items():
        lines.append(f"{name:18} {each.value:.4f}  (95 %: {each.low:.4f} to {each.high:.4f})")
    return "\n".join(lines)


def _draw_weights(rng: np.random.Generator, count: int) -> Floats:
    """How often each of `count` images is drawn in each of 50 bootstrap replicates, (50, count)."""
    return rng.multinomial(count, np.full(count, 1.0 / count), _CHUNK).astype(np.float64)


def _predict(task: TaskName, p: Floats, thresholds: Floats) -> Bools:
    if task == "multiclass":
        return np.asarray(p.argmax(axis=1)[:, None] == np.arange(p.shape[1]))
    above = p >= thresholds
    return np.stack([~above[:, 1], above[:, 1]], axis=1) if task == "binary" else above


def _metrics(
    weights: Floats, task: TaskName, p: Floats, raw: Floats, truth: Bools, predicted: Bools
) -> dict[str, Floats]:
    """Each metric in each replicate, (B,); weights (B, N) sum to N in each row."""
    count = weights.sum(axis=1)
    right = (truth == predicted).all(axis=1)
    found = {
        "exact_match" if task == "multilabel" else "accuracy": weights @ right / count,
        "macro_f1": _macro_f1(weights, truth, predicted),
        "nll": weights @ _row_nll(task, p, truth) / count,
        "nll_uncalibrated": weights @ _row_nll(task, raw, truth) / count,
        "ece": _ece(weights, task, p, truth),
        "ece_uncalibrated": _ece(weights, task, raw, truth),
    }
    if task == "multiclass":
        return found
    columns = [1] if task == "binary" else [k for k in range(truth.shape[1]) if truth[:, k].any()]
    scores = [average_precision(weights, p[:, k], truth[:, k]) for k in columns]
    if scores:
        found["average_precision" if task == "binary" else "map"] = _mean_of_known(np.stack(scores, axis=1))
    return found


def _macro_f1(weights: Floats, truth: Bools, predicted: Bools) -> Floats:
    hits, either = weights @ (truth & predicted), weights @ (truth.astype(float) + predicted)
    with np.errstate(invalid="ignore"):
        return _mean_of_known(2.0 * hits / either)


def _mean_of_known(values: Floats) -> Floats:
    """Row means of (B, K) over what is not NaN; a class that a replicate lacks does not count in it."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1))


def _row_nll(task: TaskName, p: Floats, truth: Bools) -> Floats:
    """(N,) negative log-likelihood; for a multi-label task the mean over its labels."""
    given = -np.log(np.maximum(np.where(truth, p, 1.0 - p), _TINY))
    return np.asarray(given.mean(axis=1) if task == "multilabel" else (given * truth).sum(axis=1))


def _ece(weights: Floats, task: TaskName, p: Floats, truth: Bools) -> Floats:
    """Expected calibration error in each replicate: of the likeliest class, or of every label of a multi-label task."""
    if task == "multilabel":
        confidence, correct, per_row = p.ravel(), truth.ravel().astype(float), p.shape[1]
    else:
        top = p.argmax(axis=1)
        rows = np.arange(len(p))
        confidence, correct, per_row = p[rows, top], truth[rows, top].astype(float), 1
    which = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.zeros((len(p), _BINS))
    np.add.at(gaps, (np.repeat(np.arange(len(p)), per_row), which), confidence - correct)
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / (weights.sum(axis=1) * per_row))


def _best_threshold(p: Floats, truth: Bools) -> float:
    """Half-way between the scores on both sides of the cut with the highest F1."""
    positives = int(truth.sum())
    if positives < _FEW or positives == len(truth):
        return 0.5
    order = np.argsort(-p, kind="stable")
    scores = p[order]
    f1 = 2.0 * np.cumsum(truth[order]) / (np.arange(1, len(p) + 1) + positives)
    f1[:-1][scores[:-1] == scores[1:]] = -1.0  # no threshold lies between equal scores
    best = int(f1.argmax())
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float((scores[best] + below) / 2.0)


def _class_losses(held: HeldOut, loss: LossSpec) -> list[Floats]:
    """The focal losses, without smoothing, of the images that carry each class."""
    form = softmax_focal if held.task == "multiclass" else sigmoid_focal
    values = np.asarray(form(held.logits, held.targets, gamma=loss.gamma, alpha=loss.alpha).values, np.float64)
    truth = held.truth
    if held.task == "multilabel":
        return [values[truth[:, k], k] for k in range(truth.shape[1])]
    flat = values.reshape(len(truth))
    return [flat[truth[:, k]] for k in range(truth.shape[1])]
