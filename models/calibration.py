"""From logits to honest probabilities: focal loss's bias undone in closed form, then one temperature.

Focal loss is classification-calibrated but not proper: its minimiser is under-confident. `focal_inverse` undoes that
exactly (Charoenphakdee et al. 2021, "On Focal Loss for Class-Posterior Probability Estimation", the map Psi); the
temperature takes care of the rest (Guo et al. 2017). Together: "focal temperature scaling" (Komisarenko, Kull 2024).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.card import Alpha, Calibration

Floats = NDArray[np.float64]
_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0
_SMALL = 1e-290
"""Below it products of weights leave the range of floats."""


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of logits (N, K), stable for any finite logit."""
    shifted: Floats = np.asarray(logits - logits.max(axis=1, keepdims=True))
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def softmax(logits: Floats) -> Floats:
    """Probabilities of logits (N, K), stable for any finite logit."""
    p: Floats = np.asarray(logits - logits.max(axis=1, keepdims=True))
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p


def log_sigmoid(logits: Floats) -> Floats:
    """log(sigmoid(x)) for any shape, stable for any finite logit."""
    return np.asarray(np.minimum(logits, 0.0) - np.log1p(np.exp(-np.abs(logits))))


def probabilities(logits: NDArray[np.floating], activation: str, calibration: Calibration) -> Floats:
    """Calibrated probabilities.

    Args:
        logits: (N, K), raw output of the graph.
        activation: `softmax` (rows sum to 1) or `sigmoid` (each on its own).
        calibration: what the card says.

    Returns:
        (N, K) float64 in [0, 1].
    """
    z = np.asarray(logits, np.float64)
    if activation == "softmax":
        # Without gamma nothing asks for log-probabilities: the second softmax alone gives the same.
        log_p = _inverse_softmax(log_softmax(z), calibration.gamma) if calibration.gamma else z
        return softmax(log_p / calibration.temperature)
    log_odds = _inverse_odds(z, calibration.gamma) / calibration.temperature
    return np.exp(log_sigmoid(log_odds))


def softmax_row(logits: list[float], calibration: Calibration) -> list[float]:
    """`probabilities` of one row, by softmax, in Python's floats: for few classes a third of what numpy's calls take.

    Args:
        logits: of K classes, finite.
        calibration: what the card says.

    Returns:
        K probabilities; they agree with `probabilities` within rounding.
    """
    gamma, most = calibration.gamma, max(logits)
    top = logits.index(most)
    weights = [math.exp(x - most) for x in logits]
    weights[top] = 0.0
    others = sum(weights)
    if gamma and others < _SMALL:
        return [float(p) for p in probabilities(np.array([logits]), "softmax", calibration)[0]]
    log_odds = [x - most for x in logits]
    if gamma:
        total, log_total = 1.0 + others, math.log1p(others)
        for k, weight in enumerate(weights):
            rest, odds = (others, 1.0 / others) if k == top else (total - weight, weight / (total - weight))
            # The logarithm of h, as in _log_h, but for what all classes share.
            ratio = odds * (log_odds[k] - log_total)
            log_odds[k] -= gamma * math.log(rest) + math.log1p(-gamma * ratio)
    most, temperature = max(log_odds), calibration.temperature
    weights = [math.exp((x - most) / temperature) for x in log_odds]
    total = sum(weights)
    return [weight / total for weight in weights]


def focal_inverse(p: Floats, gamma: float) -> Floats:
    """Psi: the class posterior whose focal-loss minimiser is p.

    Args:
        p: (N, K), rows sum to 1, each entry in (0, 1).
        gamma: of the focal loss that p was trained with.

    Returns:
        (N, K), rows sum to 1.
    """
    return np.exp(log_softmax(_inverse_softmax(np.log(p), gamma)))


def unweighted_probabilities(logits: Floats, activation: str, gamma: float, alpha: Alpha) -> Floats:
    """The class posterior behind the logits of a focal-trained net: gamma undone by Psi, then the class weights.

    The weighted loss has its minimum at Psi's inverse of the weighted posterior, so dividing by the weights is exact.

    Args:
        logits: (N, K), raw output of the net.
        activation: `softmax` or `sigmoid`.
        gamma: of the loss in training.
        alpha: its class weights; for sigmoid those of the positives, negatives weigh the rest.

    Returns:
        (N, K) float64; rows sum to 1 for softmax.
    """
    z = np.asarray(logits, np.float64)
    if activation == "softmax":
        weights = np.maximum(np.asarray(1.0 if alpha is None else alpha, np.float64), 1e-6)
        return np.exp(log_softmax(_inverse_softmax(log_softmax(z), gamma) - np.log(weights)))
    share = np.clip(np.asarray(0.5 if alpha is None else alpha, np.float64), 1e-6, 1.0 - 1e-6)
    return np.exp(log_sigmoid(_inverse_odds(z, gamma) - np.log(share / (1.0 - share))))


def _log_h(log_p: Floats, log_q: Floats, gamma: float) -> Floats:
    # h(v) = v / ((1-v)^g - g (1-v)^(g-1) v log v), as log v - g log q - log(1 - g v log(v) / q): finite for g < 1.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(log_q > -700.0, np.exp(log_p - log_q) * log_p, -1.0)
    return np.asarray(log_p - gamma * log_q - np.log1p(-gamma * ratio))


def _inverse_softmax(log_p: Floats, gamma: float) -> Floats:
    if gamma == 0.0:
        return log_p
    rows, top = np.arange(len(log_p)), log_p.argmax(axis=1)
    # Where p is near 1, p and 1 - p both come from the other classes: log_p itself has rounded to 0 there.
    exact = log_p.copy()
    exact[rows, top] = -np.inf
    log_q = np.log1p(-np.exp(exact))
    log_q[rows, top] = _log_sum_exp(exact)
    exact[rows, top] = np.log1p(-np.exp(log_q[rows, top]))
    return _log_h(exact, log_q, gamma)


def _log_sum_exp(values: Floats) -> Floats:
    most = values.max(axis=1)
    return np.asarray(most + np.log(np.exp(values - most[:, None]).sum(axis=1)))


def _inverse_odds(z: Floats, gamma: float) -> Floats:
    if gamma == 0.0:
        return z
    log_p, log_q = log_sigmoid(z), log_sigmoid(-z)
    return _log_h(log_p, log_q, gamma) - _log_h(log_q, log_p, gamma)


def fit_temperature(negative_log_likelihood: Callable[[float], float]) -> float:
    """The temperature in [0.05, 20] that minimises a mean negative log-likelihood, by golden-section search on log T.

    Args:
        negative_log_likelihood: of the validation labels, as a function of the temperature; unimodal in it.
    """
    low, high = math.log(0.05), math.log(20.0)
    for _ in range(60):
        span = _GOLDEN_RATIO * (high - low)
        left, right = high - span, low + span
        if negative_log_likelihood(math.exp(left)) <= negative_log_likelihood(math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2.0)


def calibrate(logits: Floats, targets: NDArray[np.intp] | Floats, activation: str, gamma: float) -> Calibration:
    """Fits the calibration on held-out data.

    Args:
        logits: (N, K) of the held-out images, N >= 1.
        targets: class indices (N,) for softmax; 0/1 (N, K) for sigmoid.
        activation: `softmax` or `sigmoid`.
        gamma: of the focal loss in training.

    Returns:
        gamma and the temperature that minimises cross-entropy after the inverse of focal loss.
    """
    z = np.asarray(logits, np.float64)
    rows = np.arange(len(z))
    inverse = _inverse_softmax(log_softmax(z), gamma) if activation == "softmax" else _inverse_odds(z, gamma)

    def softmax_nll(temperature: float) -> float:
        return float(-log_softmax(inverse / temperature)[rows, targets].mean())

    def sigmoid_nll(temperature: float) -> float:
        x = inverse / temperature
        return float(-(targets * log_sigmoid(x) + (1 - targets) * log_sigmoid(-x)).mean())

    temperature = fit_temperature(softmax_nll if activation == "softmax" else sigmoid_nll)
    return Calibration(gamma=gamma, temperature=temperature)


def expected_calibration_error(p: Floats, correct: NDArray[np.bool_], bins: int = 15) -> float:
    """ECE over equal-width bins of the confidence (Guo et al. 2017).

    Args:
        p: (N,) confidence of the predicted class.
        correct: (N,) whether the prediction is right.
        bins: how many.
    """
    which = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=p - correct, minlength=bins)
    return float(np.abs(gap).sum() / max(1, len(p)))
