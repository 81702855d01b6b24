"""The audit of a data set's labels: out-of-fold probabilities in; quality, suspects, corrections and a count out."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.noise import (
    NoiseCount,
    best_other,
    combine_evidence,
    combine_twins,
    count_noise,
    deconvolve,
    evenly,
    fit_transition,
    match_count,
    posterior,
    share_of_others,
)
from models.quality import worst_dominates
from models.scaling import VectorScaling, fit_vector_scaling

Floats = NDArray[np.float64]
Probabilities = NDArray[np.float32] | NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]
Method = Literal["posterior", "posterior with in-fold evidence", "probability of the given label"]

FAR = 0.1
"""How far off honest probabilities are at most; the scaling mends less."""
_FIT_NUMBERS = 10_000_000
"""How many probabilities T and the scaling are fitted on at most, so that memory does not grow with the data."""
_CHUNK_NUMBERS = 2_000_000
_MUCH_NOISE = 0.2
"""Share of wrong labels from which suggestions are judged by probabilities without noise alone; below it by both."""


@dataclass(frozen=True)
class Guard:
    """Whether probabilities are honest enough to be read as numbers.

    Attributes:
        gap: mean largest probability minus the share of given labels that are the predicted class; focal training
            leaves -0.13 to -0.18 in it, vanishing for honest out-of-fold probabilities.
        shift: total variation distance between the mean probabilities and the shares of the given labels.
        passed: both are within .1, or within what chance explains in so few images.
    """

    gap: float
    shift: float
    passed: bool


@dataclass(frozen=True)
class Audit:
    """What is known of N given labels of K classes.

    Attributes:
        quality: (N,) in [0, 1], the probability that the given label is right; `1 - quality` of all of them adds up to
            about `noise.wrong`.
        is_issue: (N,) whether a label is among the `round(noise.wrong)` of lowest quality.
        suggested: (N,) the likeliest class but for the given one.
        p_suggested: (N,) in [0, 1 - quality], the probability that it is the true one; 0 where the label is no issue.
        posterior: (N,) the part of the quality that new images have too.
        noise: the estimated number of wrong labels, by pair of classes.
        transition: (K, K), T, of the posterior.
        scaling: of the posterior.
        guard: what was found out about the probabilities.
        method: what the quality is.
    """

    quality: Floats
    is_issue: Bools
    suggested: Indices
    p_suggested: Floats
    posterior: Floats
    noise: NoiseCount
    transition: Floats
    scaling: VectorScaling
    guard: Guard
    method: Method


@dataclass(frozen=True)
class TagAudit:
    """What is known of N x C yes-or-no labels.

    Attributes:
        quality: (N,) one number per sample, in which the worst element dominates.
        elements: (N, C) quality of each element.
        is_issue: (N, C) which elements look wrong; the suggestion is their opposite.
        classes: the audit of each class.
    """

    quality: Floats
    elements: Floats
    is_issue: Bools
    classes: list[Audit]


def check_calibration(p: Probabilities, given: Indices) -> Guard:
    """Judges probabilities (N, K) by the given labels (N,).

    It finds focal training that was not undone and priors that were moved. It cannot find probabilities of images that
    the model was trained on: whoever calls must know that they were held out.
    """
    count, classes = p.shape
    predicted = np.zeros(count, np.intp)
    best = np.zeros(count)
    mean, spread = np.zeros(classes), np.zeros(classes)
    for rows in _chunks(count, classes):
        part = np.asarray(p[rows], np.float64)
        predicted[rows], best[rows] = part.argmax(axis=1), part.max(axis=1)
        mean += part.sum(axis=0)
        spread += (part * (1.0 - part)).sum(axis=0)
    gap = float(best.mean() - (predicted == given).mean())
    shift = 0.5 * float(np.abs(mean - np.bincount(given, minlength=classes)).sum()) / count
    by_chance = np.sqrt(2.0 / np.pi) * 0.5 * float(np.sqrt(np.maximum(spread, 0.0)).sum()) / count
    gap_by_chance = float(np.sqrt(np.maximum(best * (1.0 - best), 0.0).mean() / count))
    passed = abs(gap) <= max(FAR, 3.0 * gap_by_chance) and shift <= max(FAR, 2.0 * by_chance)
    return Guard(gap, shift, bool(passed))


def audit_labels(p: Probabilities, given: Indices, in_fold: Floats | None = None, twin: Indices | None = None) -> Audit:
    """Audits labels of K exclusive classes.

    Args:
        p: (N, K) probabilities of each image by a model that was not trained on it, averaged over the epochs of its
            training from the second on (a memory map will do); of a focal-trained model after the inverse of its bias.
        given: (N,) class indices.
        in_fold: (N,) mean over the epochs of the probability of the given label while it was trained on.
        twin: (N,) position of an image that looks the same and has another label; -1 where there is none.

    Returns:
        The audit. Where the guard does not pass, the quality is the plain probability of the given label.
    """
    count, classes = p.shape
    guard = check_calibration(p, given)
    rows = evenly(count, max(1, _FIT_NUMBERS // classes))
    part, labels = np.asarray(p[rows], np.float64), given[rows]
    scaling = fit_vector_scaling(part, labels)
    transition = fit_transition(scaling.apply(part), labels)
    counted = count_noise(part, labels)
    noise = NoiseCount(
        counted.wrong * count / len(rows), counted.joint * (count / len(rows)), counted.transition
    )  # fmt: skip
    fits, share, suggested = np.zeros(count), np.zeros(count), np.zeros(count, np.intp)
    for chunk in _chunks(count, classes):
        here, y = np.asarray(p[chunk], np.float64), given[chunk]
        scaled = scaling.apply(here)
        fits[chunk] = posterior(scaled, y, transition) if guard.passed else here[np.arange(len(y)), y]
        suggested[chunk] = best_other(scaled, y, transition)
        share[chunk] = share_of_others(scaled, y, transition, suggested[chunk])
    quality = fits if in_fold is None else combine_evidence(fits, in_fold)
    if twin is not None:
        quality = combine_twins(quality, twin)
    is_issue = lowest(quality, round(noise.wrong))
    p_suggested = np.where(is_issue, (1.0 - quality) * share, 0.0)
    if guard.passed:
        quality = match_count(quality, noise.wrong)
        trust = min(1.0, noise.wrong / count / _MUCH_NOISE)
        for few in np.array_split(np.flatnonzero(is_issue), len(_chunks(count, classes))):
            seen = None if in_fold is None else in_fold[few]
            bold = _without_noise(p[few], given[few], suggested[few], seen, noise.transition)
            p_suggested[few] += trust * (bold - p_suggested[few])
        quality = np.minimum(quality, 1.0 - p_suggested)
    method: Method = "posterior" if in_fold is None else "posterior with in-fold evidence"
    return Audit(
        quality=quality,
        is_issue=is_issue,
        suggested=suggested,
        p_suggested=p_suggested,
        posterior=fits,
        noise=noise,
        transition=transition,
        scaling=scaling,
        guard=guard,
        method=method if guard.passed else "probability of the given label",
    )


def audit_tags(p: Floats, given: Bools, in_fold: Floats | None = None) -> TagAudit:
    """Audits labels of which an image may have any number: each class on its own, the worst element dominates.

    Args:
        p: (N, C) probability of each class, held out as for `audit_labels`.
        given: (N, C) whether each label was given.
        in_fold: (N, C) mean probability of the given yes or no while it was trained on.
    """
    audits = [
        audit_labels(
            np.stack([1.0 - p[:, c], p[:, c]], axis=1),
            given[:, c].astype(np.intp),
            None if in_fold is None else in_fold[:, c],
        )
        for c in range(p.shape[1])
    ]
    elements = np.stack([audit.quality for audit in audits], axis=1)
    return TagAudit(
        quality=worst_dominates(elements),
        elements=elements,
        is_issue=np.stack([audit.is_issue for audit in audits], axis=1),
        classes=audits,
    )


def _without_noise(
    p: Probabilities, given: Indices, suggested: Indices, in_fold: Floats | None, transition: Floats
) -> Floats:
    """The probability of each suggestion, (N,), by p with the noise of the labels taken out.

    The probabilities as they are hold that noise, and say too little of a suggestion where there is much of it; these
    say too much where there is little.
    """
    sharp = deconvolve(np.asarray(p, np.float64), transition)
    quality = posterior(sharp, given, transition)
    if in_fold is not None:
        quality = combine_evidence(quality, in_fold)
    return (1.0 - quality) * share_of_others(sharp, given, transition, suggested)


def lowest(quality: Floats, count: int) -> Bools:
    """(N,) whether each is among the `count` lowest; of equal ones the earlier."""
    out = np.zeros(len(quality), bool)
    out[np.argsort(quality, kind="stable")[:count]] = True
    return out


def _chunks(count: int, classes: int) -> list[slice]:
    size = max(1, _CHUNK_NUMBERS // classes)
    return [slice(start, start + size) for start in range(0, count, size)]
