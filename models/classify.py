"""The classification tasks: one label of K (`multiclass`), any number of K (`multilabel`), yes or no (`binary`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import log_sigmoid, log_softmax, probabilities, softmax_row
from models.card import Calibration, ModelCard
from models.errors import InvalidLabel
from models.losses import sigmoid_focal, softmax_focal
from models.online import judge_labels, judge_tags
from models.quality import confident_label, normalized_margin, worst_dominates
from models.task import Floats, LabelScores, Prediction, Predictions, ScoreOptions

Bools = NDArray[np.bool_]
_TINY = float(np.finfo(np.float64).smallest_subnormal)
_SUM_TOLERANCE = 1e-3
_FEW = 48
"""Numbers of a batch that Python's floats take no longer for than numpy's calls do."""


class Multiclass:
    """Exactly one of K labels; softmax."""

    def targets(self, label: Any, card: ModelCard) -> NDArray[Any]:
        """A label as () int64 index, or (K,) float64 soft vector that sums to 1."""
        if isinstance(label, list) and len(label) == 1 and isinstance(label[0], str):
            label = label[0]
        if isinstance(label, list):
            soft = _soft_vector(label, len(card.labels))
            if abs(soft.sum() - 1.0) > _SUM_TOLERANCE:
                raise InvalidLabel(f"a soft label must sum to 1 (it sums to {soft.sum():.6g})")
            return np.asarray(soft / soft.sum())
        return np.asarray(label_index(label, card.labels), np.int64)

    def predict(self, logits: NDArray[np.floating], card: ModelCard) -> Predictions:
        """Predictions for logits (N, K): the likeliest class."""
        p = probabilities(logits, "softmax", card.calibration)
        falling = -p
        order = falling.argsort(axis=1, kind="stable")
        falling.sort(axis=1)
        return Predictions(p, order, falling[:, 1] - falling[:, 0])

    def predict_rows(self, logits: NDArray[np.floating], card: ModelCard) -> list[Prediction]:
        """As `predict`, for logits (N, K) of finite numbers, image by image."""
        if not 0 < logits.size <= _FEW:
            return self.predict(logits, card).rows()
        found = []
        for row in logits.tolist():
            p = softmax_row(row, card.calibration)
            order = sorted(range(len(p)), key=p.__getitem__, reverse=True)
            found.append(Prediction(p, order, p[order[0]] - p[order[1]]))
        return found

    def score(
        self, rows: Floats, targets: NDArray[Any], card: ModelCard, options: ScoreOptions, raw: Bools
    ) -> LabelScores:
        """Scores labels: rows (N, K), targets (N,) int64 or (N, K) float64."""
        hard = targets.ndim == 1
        valid = targets != options.ignore_index if hard else np.ones(len(rows), bool)
        given = np.where(valid, targets, 0) if hard else targets.argmax(axis=1)
        terms = softmax_focal(
            rows,
            targets,
            gamma=options.gamma,
            alpha=options.alpha,
            alpha_mode=options.alpha_mode,
            label_smoothing=options.label_smoothing,
            ignore_index=options.ignore_index,
        )
        safe = np.where(valid[:, None], rows, 0.0)
        log_p = log_softmax(safe)
        if hard:
            log_given = log_p[np.arange(len(rows)), given] if terms.log_pt is None else terms.log_pt
        else:
            log_given = (targets * log_p).sum(axis=1)
        p = np.exp(log_p)
        honest = np.where(raw[:, None], probabilities(safe, "softmax", card.calibration), p)
        better = confident_label(honest, _column(card, "confidence_threshold"))
        # The likeliest label needs no suggestion, even where it is below its own threshold.
        suggested = np.where(honest.argmax(axis=1) == given, given, better)
        quality, is_issue = normalized_margin(honest, given), (suggested >= 0) & (suggested != given)
        if card.label_noise and raw.any():
            found = judge_labels(safe, given, card)
            quality, suggested, is_issue = (
                np.where(raw, new, old) for new, old in zip(found, (quality, suggested, is_issue), strict=True)
            )
        loss = np.asarray(terms.values, np.float64)
        return LabelScores(
            terms=terms,
            loss=loss,
            log_p_given=np.where(valid, log_given, 0.0),
            margin=normalized_margin(p, given),
            quality=quality,
            suggested=_others(suggested.tolist(), given.tolist()),
            is_issue=valid & is_issue,
            valid=valid,
            percentile=_percentile(loss, given, card, options, raw),
        )


class Multilabel:
    """Any number of K labels, each on its own; sigmoid."""

    def targets(self, label: Any, card: ModelCard) -> NDArray[Any]:
        """A label as (K,) float64 in [0, 1]: from a name, an index, a list of names, or K numbers."""
        count = len(card.labels)
        if isinstance(label, list) and all(isinstance(name, str) for name in label):
            indices = [label_index(name, card.labels) for name in label]
            if len(set(indices)) != len(indices):
                raise InvalidLabel("a label is named twice")
            return np.isin(np.arange(count), indices).astype(np.float64)
        if isinstance(label, list):
            return _soft_vector(label, count)
        return np.asarray(np.arange(count) == label_index(label, card.labels), np.float64)

    def predict(self, logits: NDArray[np.floating], card: ModelCard) -> Predictions:
        """Predictions for logits (N, K): every class at or above its decision threshold."""
        p = probabilities(logits, "sigmoid", card.calibration)
        thresholds = _column(card, "decision_threshold")
        order = np.argsort(-p, axis=1, kind="stable")
        margin = p.max(axis=1) - thresholds[order[:, 0]]
        return Predictions(p, order, margin, p >= thresholds)

    def predict_rows(self, logits: NDArray[np.floating], card: ModelCard) -> list[Prediction]:
        """As `predict`, for logits (N, K), image by image."""
        return self.predict(logits, card).rows()

    def score(
        self, rows: Floats, targets: NDArray[Any], card: ModelCard, options: ScoreOptions, raw: Bools
    ) -> LabelScores:
        """Scores labels: rows (N, K), targets (N, K) in [0, 1]; a sample's loss is the sum over its labels."""
        return _score_sigmoid(rows, targets, card, options, raw)


class Binary:
    """Yes or no: one logit, labels (negative, positive); sigmoid."""

    def targets(self, label: Any, card: ModelCard) -> NDArray[Any]:
        """A label as (1,) float64, the degree to which it is the positive one."""
        if isinstance(label, list) and len(label) == 1 and isinstance(label[0], str):
            label = label[0]
        if isinstance(label, list):
            soft = _soft_vector(label, len(label) if len(label) in (1, 2) else 1)
            if len(soft) == 2 and abs(soft.sum() - 1.0) > _SUM_TOLERANCE:
                raise InvalidLabel(f"a soft label must sum to 1 (it sums to {soft.sum():.6g})")
            return np.asarray(soft[-1:] / (soft.sum() if len(soft) == 2 else 1.0))
        return np.asarray([label_index(label, card.labels)], np.float64)

    def predict(self, logits: NDArray[np.floating], card: ModelCard) -> Predictions:
        """Predictions for logits (N, 1): positive at or above the decision threshold."""
        positive = probabilities(logits, "sigmoid", card.calibration)
        distance = positive[:, 0] - card.classes[1].decision_threshold
        order = np.where(distance[:, None] >= 0.0, [[1, 0]], [[0, 1]])
        return Predictions(np.concatenate([1.0 - positive, positive], axis=1), order, np.abs(distance))

    def predict_rows(self, logits: NDArray[np.floating], card: ModelCard) -> list[Prediction]:
        """As `predict`, for logits (N, 1), image by image."""
        return self.predict(logits, card).rows()

    def score(
        self, rows: Floats, targets: NDArray[Any], card: ModelCard, options: ScoreOptions, raw: Bools
    ) -> LabelScores:
        """Scores labels: rows (N, 1), targets (N, 1) in [0, 1]."""
        return _score_sigmoid(rows, targets, card, options, raw)


def _others(suggested: list[int], given: list[int]) -> list[int | tuple[int, ...] | None]:
    return [j if j >= 0 and j != g else None for j, g in zip(suggested, given, strict=True)]


def logits_of(p: Floats, activation: str) -> Floats:
    """Logits that give these probabilities; 0 and 1 count as one smallest double away from themselves."""
    log_p = np.log(np.maximum(p, _TINY))
    return log_p if activation == "softmax" else np.asarray(log_p - np.log(np.maximum(1.0 - p, _TINY)))


def is_clipped(p: Floats, target: NDArray[Any]) -> bool:
    """Whether the given label has a probability of exactly 0.

    Args:
        p: (K,) probabilities.
        target: of one label, as `targets` makes it.
    """
    if target.ndim == 0:
        return bool(0 <= target < len(p) and p[target] == 0.0)
    impossible = ((p == 0.0) & (target > 0.0)) | ((p == 1.0) & (target == 0.0))
    return bool(impossible.any())


def label_index(label: Any, labels: Sequence[str]) -> int:
    """A label by name or index as an index into the labels.

    Raises:
        InvalidLabel: neither, or not one of this model's.
    """
    if isinstance(label, str):
        if label not in labels:
            raise InvalidLabel(f"the model has no label of that name; it has {_few(labels)}")
        return labels.index(label)
    if type(label) is not int:
        raise InvalidLabel("a label is an index (whole number), a name, a list of names, or a list of numbers")
    if not 0 <= label < len(labels):
        raise InvalidLabel(
            f"label index {label} is out of range: 0 to {len(labels) - 1}"
            if abs(label) < 1e9
            else f"the label index is out of range: 0 to {len(labels) - 1}"
        )
    return label


def _score_sigmoid(rows: Floats, targets: Floats, card: ModelCard, options: ScoreOptions, raw: Bools) -> LabelScores:
    valid = targets != options.ignore_index if options.ignore_index is not None else np.ones(targets.shape, bool)
    y = np.where(valid, targets, 0.0)
    terms = sigmoid_focal(
        rows,
        targets,
        gamma=options.gamma,
        alpha=options.alpha,
        label_smoothing=options.label_smoothing,
        ignore_index=options.ignore_index,
    )
    safe = np.where(valid, rows, 0.0)
    log_given = np.where(valid, y * log_sigmoid(safe) + (1.0 - y) * log_sigmoid(-safe), 0.0)
    honest = np.where(
        raw[:, None],
        probabilities(safe, "sigmoid", card.calibration),
        probabilities(safe, "sigmoid", Calibration()),
    )
    present = y >= 0.5
    fit = np.where(present, honest, 1.0 - honest)
    thresholds = _thresholds(card, "decision_threshold")
    better = np.where(valid, honest >= thresholds, present)
    surely = np.where(present, fit <= np.minimum(0.5, thresholds), honest >= _thresholds(card, "confidence_threshold"))
    if card.label_noise and raw.any():
        judged, wrong = judge_tags(safe, present, card)
        fit, surely = np.where(raw[:, None], judged, fit), np.where(raw[:, None], wrong, surely)
        better = np.where(raw[:, None], present ^ (wrong & valid), better)
    # An ignored element must not move the aggregate: it repeats the row's best.
    best = np.where(valid, fit, -1.0).max(axis=1, keepdims=True)
    fit = np.where(valid, fit, np.where(best < 0.0, 1.0, best))
    as_it_is = np.where(valid, np.exp(log_sigmoid(np.where(present, safe, -safe))), 1.0)
    loss = np.asarray(terms.values, np.float64).sum(axis=1)
    known = _percentile(loss, present[:, 0].astype(np.intp), card, options, raw)
    return LabelScores(
        terms=terms,
        loss=loss,
        log_p_given=log_given.sum(axis=1),
        margin=as_it_is.min(axis=1),
        quality=worst_dominates(fit),
        suggested=[_suggestion(row, now, card) for row, now in zip(better, present, strict=True)],
        is_issue=(valid & surely & (better != present)).any(axis=1),
        valid=np.asarray(valid.any(axis=1)),
        percentile=known if card.task == "binary" else np.full(len(rows), np.nan),
    )


def _suggestion(better: NDArray[np.bool_], now: NDArray[np.bool_], card: ModelCard) -> int | tuple[int, ...] | None:
    if (better == now).all():
        return None
    return int(better[0]) if card.task == "binary" else tuple(np.flatnonzero(better).tolist())


def _soft_vector(label: Sequence[Any], count: int) -> Floats:
    if len(label) != count or not {type(value) for value in label} <= {int, float}:
        raise InvalidLabel(f"a soft label is a list of {count} numbers, one per class")
    if not all(0 <= value <= 1 for value in label):
        raise InvalidLabel("the numbers of a soft label lie between 0 and 1")
    return np.asarray(label, np.float64)


def _few(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _column(card: ModelCard, field: str) -> Floats:
    return np.asarray([getattr(facts, field) for facts in card.classes], np.float64)


def _thresholds(card: ModelCard, field: str) -> Floats:
    column = _column(card, field)
    return column[1:] if card.task == "binary" else column


def _percentile(loss: Floats, given: NDArray[np.intp], card: ModelCard, options: ScoreOptions, raw: Bools) -> Floats:
    """Where each loss lies among the validation losses of its class; NaN unless computed the same way."""
    out = np.full(len(loss), np.nan)
    if (options.gamma, options.alpha, options.label_smoothing) == (card.loss.gamma, card.loss.alpha, 0.0):
        for k, facts in enumerate(card.classes):
            if facts.loss_quantiles:
                mine = raw & (given == k)
                out[mine] = np.interp(loss[mine], facts.loss_quantiles, card.quantile_levels)
    return out
