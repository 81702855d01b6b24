"""Wrong labels as noise: a matrix T of how classes are mislabelled, and the posterior that a given label is right.

T[j, k] is the probability that an image of class j was given the label k. With it, Bayes gives for an image with class
probabilities p and given label y the probability that y is right, p_y T_yy / sum_j p_j T_jy. A symmetric T gives
exactly the order of p_y; a T that knows that shirts are called T-shirts doubts that label more than others.

Two estimates of T, because they are good at different things (docs/label-quality.md has the figures): a short
expectation-maximisation on the surest images ranks best (`fit_transition`); for counting, the same starts from the
labels of the very surest images of each class, the anchors (Liu and Tao 2016; Patrini et al. 2017), and works on
probabilities from which the noise has been taken out (`count_noise`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

_FIT_FLOOR = 1e-5
_FLOOR = 1e-6
_START = 0.9
_FIT_STEPS = 30
_CONFIDENT = 0.6
_FIT_STRENGTH = 20.0
_START_STRENGTH = 2.0
_FEW_CLASSES = 10
_COUNT_STEPS = 5
_ANCHORS = 0.2
_ANCHOR_STRENGTH = 5.0
_DECONVOLUTION_STEPS = 20
_ONE_CLASS = 0.95
"""The probability that pictures that look the same are of one class."""
_MOST_ODDS, _ODDS_STEPS, _ODDS_ROWS = 10.0, 40, 100_000
_COUNT_WORK = 500_000_000
"""Rows times classes squared that are deconvolved at most: beyond, evenly spaced rows."""


@dataclass(frozen=True)
class NoiseCount:
    """How many labels are wrong, as estimated.

    Attributes:
        wrong: expected number of wrong labels among all N.
        joint: (K, K) expected number of labels by (true class, given label); sums to N.
        transition: (K, K), what the count was made with.
    """

    wrong: float
    joint: Floats
    transition: Floats


def fit_transition(p: Floats, given: Indices, start: Floats | None = None, steps: int = _FIT_STEPS) -> Floats:
    """T by expectation-maximisation on the surest 60 % of the images that are predicted as each class.

    Stopped early on purpose: probabilities that are perfect for the given labels explain them with no noise at all, and
    the fit would end there.

    Args:
        p: (N, K) calibrated probabilities of images that their model was not trained on; N >= 1, K >= 2.
        given: (N,) class indices.
        start: (K, K), T to begin with and to stay near: it joins each class as two images for every class beyond ten.
            Where left out, 10 % of evenly spread noise to begin with.
        steps: how many.

    Returns:
        (K, K); rows are true classes and sum to 1.
    """
    classes = p.shape[1]
    keep = np.flatnonzero(_surest(p, _CONFIDENT))
    keep = keep[np.argsort(given[keep], kind="stable")]
    sure = np.maximum(np.asarray(p[keep], np.float64), _FIT_FLOOR)
    ends = np.cumsum(np.bincount(given[keep], minlength=classes))
    transition = _symmetric(1.0 - _START, classes) if start is None else start
    for _ in range(steps):
        counts = np.zeros((classes, classes))
        for k, (begin, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
            if begin < end:
                # The responsibilities p_ij T_jk / sum_l p_il T_lk, summed over images, without forming them.
                column, rows = transition[:, k], sure[begin:end]
                counts[:, k] = column * ((1.0 / (rows @ column)) @ rows)
        pull = 0.0 if start is None else _START_STRENGTH * max(0, classes - _FEW_CLASSES) * start
        transition = _normalized(counts, _FIT_STRENGTH, pull)
    return transition


def anchor_transition(p: Floats, given: Indices) -> Floats:
    """T from anchors: the surest 20 % of the images that are predicted as each class, taken to be of that class.

    A row is the mean over its anchors of what they were labelled and of what the model expects them to be labelled.

    Args:
        p: (N, K) calibrated probabilities of the given labels, for images that their model was not trained on.
        given: (N,) class indices.

    Returns:
        (K, K); rows are true classes and sum to 1.
    """
    classes = p.shape[1]
    keep = np.flatnonzero(_surest(p, _ANCHORS))
    predicted = np.asarray(p[keep]).argmax(axis=1)
    counts = np.zeros((classes, classes))
    np.add.at(counts, predicted, np.asarray(p[keep], np.float64))
    np.add.at(counts, (predicted, given[keep]), 1.0)
    return _normalized(counts / 2.0, _ANCHOR_STRENGTH)


def true_class(p: Floats, given: Indices, transition: Floats) -> Floats:
    """The posterior of the true class, (N, K), rows sum to 1, from p (N, K) and given labels (N,)."""
    joint = np.maximum(np.asarray(p, np.float64), _FLOOR) * transition.T[given]
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def posterior(p: Floats, given: Indices, transition: Floats) -> Floats:
    """The probability that each given label is the true one, (N,) in [0, 1]; each row on its own.

    Args:
        p: (N, K) calibrated probabilities.
        given: (N,) class indices.
        transition: (K, K), T.
    """
    return np.asarray(true_class(p, given, transition)[np.arange(len(given)), given])


def best_other(p: Floats, given: Indices, transition: Floats) -> Indices:
    """The likeliest true class but for the given one, (N,)."""
    found = true_class(p, given, transition)
    found[np.arange(len(given)), given] = -1.0
    return np.asarray(found.argmax(axis=1))


def share_of_others(p: Floats, given: Indices, transition: Floats, other: Indices) -> Floats:
    """The probability that the true class is `other`, if it is not the given one; (N,) in [0, 1].

    Args:
        p: (N, K) calibrated probabilities.
        given: (N,) class indices.
        transition: (K, K), T.
        other: (N,) class indices, none the given one.
    """
    found, rows = true_class(p, given, transition), np.arange(len(given))
    found[rows, given] = 0.0
    return np.asarray(found[rows, other] / np.maximum(found.sum(axis=1), _FLOOR))


def combine_evidence(quality: Floats, in_fold: Floats) -> Floats:
    """Adds what training showed: the sum of the log-odds of both, as a probability again, (N,).

    Args:
        quality: (N,) posterior from held-out probabilities.
        in_fold: (N,) probability of the given label while the image was trained on, averaged over the epochs; a net
            learns wrong labels late (Arpit et al. 2017, "A Closer Look at Memorization").
    """
    first, second = (np.clip(part, 1e-5, 1.0 - 1e-5) for part in (quality, np.asarray(in_fold, np.float64)))
    both = first * second
    return np.asarray(both / (both + (1.0 - first) * (1.0 - second)))


def combine_twins(quality: Floats, twin: Indices) -> Floats:
    """Adds what a picture that looks the same and has another label says: they are of one class, so one label is wrong.

    Both are taken to be right or wrong independently, but for that; in one of twenty such pairs the classes do differ.

    Args:
        quality: (N,) probability that each given label is right.
        twin: (N,) position of such a picture; -1 where there is none.

    Returns:
        (N,) in [0, 1]; as it was where there is no twin.
    """
    rows = np.flatnonzero(twin >= 0)
    out = np.array(quality, np.float64)
    own, other = quality[rows], quality[twin[rows]]
    both = own * other
    out[rows] = np.clip((own - _ONE_CLASS * both) / np.maximum(1.0 - _ONE_CLASS * both, _FLOOR), 0.0, 1.0)
    return out


def match_count(quality: Floats, wrong: float) -> Floats:
    """Changes the odds of all labels by one factor, a tenth to ten, so that the doubts add up to the counted number.

    Probabilities that hold the noise of the labels explain some of it away; the order of the labels stays.

    Args:
        quality: (N,) probability that each given label is right.
        wrong: how many of the N are counted as wrong.

    Returns:
        (N,) in [0, 1].
    """
    some = quality[evenly(len(quality), _ODDS_ROWS)]
    least, most = -np.log(_MOST_ODDS), np.log(_MOST_ODDS)
    for _ in range(_ODDS_STEPS):
        middle = 0.5 * (least + most)
        if _change_odds(some, middle).mean() < 1.0 - wrong / len(quality):
            least = middle
        else:
            most = middle
    return _change_odds(quality, least)


def deconvolve(p: Floats, transition: Floats) -> Floats:
    """Probabilities of the true class from those of the given label: r with r T = p, by Richardson and Lucy's steps.

    Args:
        p: (N, K) calibrated probabilities of the label that would be given.
        transition: (K, K), T.

    Returns:
        (N, K), rows sum to 1.
    """
    sharp = np.asarray(p, np.float64)
    observed = sharp
    for _ in range(_DECONVOLUTION_STEPS):
        sharp = sharp * ((observed / np.maximum(sharp @ transition, 1e-12)) @ transition.T)
        sharp /= sharp.sum(axis=1, keepdims=True)
    return sharp


def count_noise(p: Floats, given: Indices) -> NoiseCount:
    """Estimates how many labels are wrong, and which classes are taken for which.

    The probabilities of held-out images are those of the label that would be *given*, noise included. It is taken out
    with T from the anchors, T is fitted anew to the result (less freely where classes are many), and the shares of the
    true classes are those which T turns into the shares of the given labels.

    Args:
        p: (N, K) probabilities of images that their model was not trained on, not vector-scaled: scaling lowers the
            count. N >= 1, K >= 2.
        given: (N,) class indices.
    """
    count, classes = p.shape
    anchored = anchor_transition(p, given)
    rows = evenly(count, max(1, _COUNT_WORK // classes**2))
    sharp = np.empty((len(rows), classes))
    for part in np.array_split(np.arange(len(rows)), max(1, len(rows) * classes // 1_000_000)):
        sharp[part] = deconvolve(p[rows[part]], anchored)
    transition = fit_transition(sharp, given[rows], anchored, _COUNT_STEPS)
    labels = np.bincount(given, minlength=classes).astype(np.float64)
    truth = np.maximum(np.linalg.lstsq(transition.T, labels, rcond=None)[0], 0.0)
    joint = transition * (truth * (count / truth.sum()))[:, None]
    return NoiseCount(float(joint.sum() - np.trace(joint)), joint, transition)


def evenly(count: int, most: int) -> Indices:
    """Positions of at most `most` of `count` rows, evenly spaced; all where there are no more."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.intp)


def _change_odds(quality: Floats, by: float) -> Floats:
    """Adds to the log-odds of (N,) probabilities."""
    return np.asarray(quality / (quality + (1.0 - quality) * np.exp(-by)))


def _surest(p: Floats, share: float) -> Bools:
    """(N,) whether an image is among the surest share of those with the same predicted class."""
    predicted, best = np.asarray(p).argmax(axis=1), np.asarray(p).max(axis=1)
    order = np.lexsort((best, predicted))
    keep = np.zeros(len(order), bool)
    for rows in np.split(order, np.flatnonzero(np.diff(predicted[order])) + 1):
        keep[rows] = best[rows] >= np.quantile(best[rows], 1.0 - share)
    return keep


def _symmetric(rate: float, classes: int) -> Floats:
    out = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(out, 1.0 - rate)
    return out


def _normalized(counts: Floats, strength: float, pull: Floats | float = 0.0) -> Floats:
    """Rows that sum to 1, after `strength` images of evenly spread noise of the same overall rate joined each.

    `pull`, (K, K), joins as it is.
    """
    rate = 1.0 - float(np.trace(counts) / counts.sum())
    smoothed = counts + strength * _symmetric(min(max(rate, 0.0), 1.0), len(counts)) + pull
    return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True))
