"""The audit's quality for single labels: what was learnt of the noise on validation, applied to one row at a time."""

import numpy as np
from numpy.typing import NDArray

from models.audit import Audit, audit_labels
from models.calibration import unweighted_probabilities
from models.card import LabelNoise, ModelCard
from models.noise import best_other, posterior
from models.scaling import VectorScaling, fit_vector_scaling

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

MARGIN = "margin of calibrated probabilities"
POSTERIOR = "posterior of the given label under label noise"
_LEAST_IMAGES, _LEAST_PER_CLASS = 100, 10
_MOST_CLASSES = 256


def fit_label_noise(snapshot: Floats, kept: Floats, targets: NDArray[np.generic]) -> list[LabelNoise]:
    """What the card keeps of the noise in validation labels.

    The matrix comes from the mean over epochs, which has learnt fewer wrong labels; scaling and threshold from the
    weights that are exported, since they are what new images are judged with.

    Args:
        snapshot: (N, K) unweighted probabilities of the validation images, the mean over the epochs from the second on;
            (N, C) of yes for sigmoid tasks.
        kept: the same of the weights that are exported.
        targets: (N,) class indices; (N, C) 0 and 1 for sigmoid tasks.

    Returns:
        One over all classes for softmax, one per column for sigmoid; empty where there are fewer than 100 images or 10
        per class, more than 256 classes, or where the probabilities are not honest enough to be read as numbers.
    """
    classes = snapshot.shape[1] if targets.ndim == 1 else 2
    if len(targets) < max(_LEAST_IMAGES, _LEAST_PER_CLASS * classes) or classes > _MOST_CLASSES:
        return []
    if targets.ndim == 1:
        return _fit(snapshot, kept, targets.astype(np.intp))
    columns = [
        _fit(_yes_no(snapshot, c), _yes_no(kept, c), targets[:, c].astype(np.intp)) for c in range(kept.shape[1])
    ]
    return [part for column in columns for part in column] if all(columns) else []


def judge_labels(rows: Floats, given: Indices, card: ModelCard) -> tuple[Floats, Indices, Bools]:
    """Judges labels of a multiclass model whose card has `label_noise`.

    Args:
        rows: (N, K) logits of the model.
        given: (N,) class indices.
        card: of the model.

    Returns:
        quality (N,) in [0, 1]; the likeliest other class (N,), -1 where the given label is no issue and likelier than
        not; is_issue (N,).
    """
    quality, other, is_issue = _judge(
        unweighted_probabilities(rows, "softmax", card.loss.gamma, card.loss.alpha), given, card.label_noise[0]
    )
    return quality, np.where(is_issue | (quality < 0.5), other, -1), is_issue


def judge_tags(rows: Floats, present: Bools, card: ModelCard) -> tuple[Floats, Bools]:
    """Judges each yes and no for a sigmoid model whose card has `label_noise`: quality (N, C), is_issue (N, C)."""
    p = unweighted_probabilities(rows, "sigmoid", card.loss.gamma, card.loss.alpha)
    columns = [
        _judge(_yes_no(p, c), present[:, c].astype(np.intp), part) for c, part in enumerate(card.label_noise)
    ]  # fmt: skip
    return np.stack([column[0] for column in columns], axis=1), np.stack([column[2] for column in columns], axis=1)


def quality_method(card: ModelCard, raw: Bools) -> str:
    """What `quality` is, by name; rows (N,) that are not the model's own are judged by the margin."""
    if not card.label_noise or (len(raw) and not raw.any()):
        return MARGIN
    return POSTERIOR if raw.all() else f"{POSTERIOR}; of probabilities: {MARGIN}"


def _fit(snapshot: Floats, kept: Floats, given: Indices) -> list[LabelNoise]:
    audit: Audit = audit_labels(snapshot, given)
    if not audit.guard.passed:
        return []
    scaling = fit_vector_scaling(kept, given)
    rate = float(np.clip(audit.noise.wrong / len(given), 0.0, 1.0))
    quality = np.sort(posterior(scaling.apply(kept), given, audit.transition))
    flagged = round(rate * len(given))
    return [
        LabelNoise(
            temperature=scaling.temperature,
            biases=scaling.biases.tolist(),
            transition=audit.transition.tolist(),
            rate=rate,
            threshold=float(quality[flagged - 1]) if flagged else 0.0,
        )
    ]


def _judge(p: Floats, given: Indices, noise: LabelNoise) -> tuple[Floats, Indices, Bools]:
    scaled = VectorScaling(noise.temperature, np.asarray(noise.biases)).apply(p)
    transition = np.asarray(noise.transition)
    quality = posterior(scaled, given, transition)
    return quality, best_other(scaled, given, transition), np.asarray(quality <= noise.threshold)


def _yes_no(p: Floats, column: int) -> Floats:
    """(N, 2): the probabilities of no and yes."""
    return np.stack([1.0 - p[:, column], p[:, column]], axis=1)
