"""Vector scaling: one temperature and one bias per class, fitted so that probabilities fit the labels as given.

Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. The posterior of `models.noise` reads the
probabilities as numbers, not as an order, so they are brought to the scale of the given labels first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.calibration import log_softmax

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_FLOOR = 1e-12
_PENALTY = 1e-3
_STEPS = 50
_HESSIAN_NUMBERS = 4_000_000
_LEAST_SCALE, _MOST_SCALE = 0.05, 20.0


@dataclass(frozen=True)
class VectorScaling:
    """softmax(log p / temperature + biases).

    Attributes:
        temperature: > 0; above 1 softens.
        biases: (K,) added to each class's log-probability.
    """

    temperature: float
    biases: Floats

    def apply(self, p: Floats) -> Floats:
        """Scaled probabilities, (N, K) from (N, K); each row on its own."""
        return np.exp(log_softmax(_logarithm(p) / self.temperature + self.biases))


@dataclass(frozen=True)
class _State:
    scale: float
    biases: Floats
    value: float
    p: Floats


def fit_vector_scaling(p: Floats, given: Indices) -> VectorScaling:
    """The scaling of highest likelihood of the given labels, by Newton's method; convex, so the start does not matter.

    The penalty 1e-3 / 2 times the squared distance from no scaling keeps classes without labels where they were.

    Args:
        p: (N, K) probabilities of images that their model was not trained on, N >= 1, K >= 2.
        given: (N,) class indices.
    """
    log_p = _logarithm(p)
    state = _evaluate(log_p, given, 1.0, np.zeros(log_p.shape[1]))
    for _ in range(_STEPS):
        gradient = _gradient(log_p, given, state)
        step: Floats = np.asarray(np.linalg.solve(_hessian(log_p, state.p), gradient), np.float64)
        slope = float(gradient @ step)
        if slope < 1e-14:
            break
        better = _line_search(log_p, given, state, step, slope)
        if better is None:
            break
        state = better
    return VectorScaling(1.0 / float(np.clip(state.scale, _LEAST_SCALE, _MOST_SCALE)), state.biases)


def _logarithm(p: Floats) -> Floats:
    safe = np.maximum(np.asarray(p, np.float64), _FLOOR)
    return np.asarray(np.log(safe, out=safe))


def _evaluate(log_p: Floats, given: Indices, scale: float, biases: Floats) -> _State:
    # In place, and one exponential for both: these arrays are what an audit's memory is made of.
    scaled = scale * log_p
    scaled += biases
    scaled -= scaled.max(axis=1, keepdims=True)
    own = scaled[np.arange(len(given)), given]
    p = np.exp(scaled, out=scaled)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    penalty = 0.5 * _PENALTY * ((scale - 1.0) ** 2 + float(biases @ biases))
    return _State(scale, biases, penalty - float((own - np.log(total[:, 0])).mean()), p)


def _gradient(log_p: Floats, given: Indices, state: _State) -> Floats:
    """(K + 1,): of the scale, then of the biases."""
    count = len(given)
    given_log = float(log_p[np.arange(count), given].sum())
    by_scale = (float(np.vdot(state.p, log_p)) - given_log) / count + _PENALTY * (state.scale - 1.0)
    by_bias = state.p.mean(axis=0) - np.bincount(given, minlength=log_p.shape[1]) / count + _PENALTY * state.biases
    return np.concatenate([[by_scale], by_bias])


def _hessian(log_p: Floats, p: Floats) -> Floats:
    """(K + 1, K + 1), from evenly spaced rows where there are many: only the way to the optimum depends on them."""
    classes = log_p.shape[1]
    stride = max(1, log_p.size // _HESSIAN_NUMBERS)
    part, logs = p[::stride], log_p[::stride]
    weighted = part * logs
    mean = weighted.sum(axis=1)
    out = np.empty((classes + 1, classes + 1))
    out[0, 0] = ((weighted * logs).sum(axis=1) - mean**2).mean()
    out[0, 1:] = out[1:, 0] = (weighted - part * mean[:, None]).mean(axis=0)
    out[1:, 1:] = np.diag(part.mean(axis=0)) - part.T @ part / len(part)
    return out + _PENALTY * np.eye(classes + 1)


def _line_search(log_p: Floats, given: Indices, state: _State, step: Floats, slope: float) -> _State | None:
    length = 1.0
    while length > 1e-6:
        found = _evaluate(log_p, given, state.scale - length * float(step[0]), state.biases - length * step[1:])
        if found.value <= state.value - 1e-4 * length * slope:
            return found
        length /= 2.0
    return None
