"""A card's calibrators: multinomial logistic regression of named kinds on named features, fitted by Newton's method."""

from collections.abc import Sequence

import numpy as np

from models.boxes import Floats, Indices
from models.calibration import log_softmax
from models.detector_spec import BoxCalibrator
from models.errors import BundleError, InvalidInput

LOG_FLOOR = 1e-4
"""Added to features before their logarithm is taken."""
_STEPS = 50


def fit_regression(
    features: Floats, kinds: Indices, names: Sequence[str], kind_names: Sequence[str], strength: float = 1.0
) -> BoxCalibrator:
    """Penalised maximum likelihood on standardised features.

    Args:
        features: (N, F).
        kinds: (N,) int64, index into kind_names; the first of them is the usual one.
        names: of the F features.
        kind_names: of all kinds.
        strength: of the squared-weight penalty, which half of each is multiplied with; the bias is free.

    Returns:
        The calibrator of the kinds that occur.

    Raises:
        InvalidInput: the usual kind is absent, or no other is there.
    """
    present = np.unique(kinds)
    if 0 not in present or len(present) < 2:
        raise InvalidInput("a calibrator is fitted on sound boxes and wrong ones; one kind is absent")
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    x = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], axis=1)
    weights = _newton(x, (kinds[:, None] == present).astype(np.float64), strength)
    return BoxCalibrator(
        causes=[kind_names[k] for k in present],
        features=list(names),
        mean=mean.tolist(),
        scale=scale.tolist(),
        weights=weights[:-1].tolist(),
        bias=weights[-1].tolist(),
    )


def apply_regression(
    calibrator: BoxCalibrator, features: Floats, names: Sequence[str], kind_names: Sequence[str], part: str
) -> Floats:
    """Probabilities (N, C) of all kinds, columns as kind_names; 0 for a kind that the calibrator has not.

    Args:
        calibrator: the card's.
        features: (N, F).
        names: of the F features; the calibrator may weigh some of them, in any order.
        kind_names: of all kinds.
        part: of the card, for messages.

    Raises:
        BundleError: a feature or a kind that is not known.
    """
    for kind, given, known in (("feature", calibrator.features, names), ("cause", calibrator.causes, kind_names)):
        if not set(given) <= set(known):
            raise BundleError(f"{part}: no {kind} {sorted(set(given) - set(known))[0]!r} is known")
    columns = [names.index(name) for name in calibrator.features]
    x = (features[:, columns] - np.asarray(calibrator.mean)) / np.asarray(calibrator.scale)
    out = np.zeros((len(x), len(kind_names)))
    weights = np.asarray(calibrator.weights, np.float64).reshape(len(columns), -1)
    out[:, [kind_names.index(name) for name in calibrator.causes]] = _softmax(x @ weights + np.asarray(calibrator.bias))
    return out


def _newton(x: Floats, y: Floats, strength: float) -> Floats:
    """Weights (F + 1, C) of a softmax regression of y (N, C) on x (N, F + 1), the last row of them not penalised."""
    width, kinds = x.shape[1], y.shape[1]
    penalty = np.full((width, kinds), strength)
    penalty[-1] = 1e-6  # the biases are determined up to a constant only
    weights = np.zeros((width, kinds))
    value = _objective(x, y, weights, penalty)
    for _ in range(_STEPS):
        p = _softmax(x @ weights)
        slope = x.T @ (p - y) + penalty * weights
        step = np.linalg.solve(_curvature(x, p) + np.diag(penalty.T.ravel()), slope.T.ravel()).reshape(kinds, width).T
        size = 1.0
        while (after := _objective(x, y, weights - size * step, penalty)) > value and size > 1e-6:
            size /= 2.0
        if value - after <= 1e-9 * max(1.0, value):
            break
        weights, value = weights - size * step, after
    return weights


def _objective(x: Floats, y: Floats, weights: Floats, penalty: Floats) -> float:
    return float(-(y * log_softmax(x @ weights)).sum() + 0.5 * (penalty * weights**2).sum())


def _curvature(x: Floats, p: Floats) -> Floats:
    """The Hessian (C (F + 1), C (F + 1)) of the likelihood, class by class."""
    kinds = p.shape[1]
    rows = range(kinds)
    return np.block([[(x * (p[:, [i]] * (float(i == j) - p[:, [j]]))).T @ x for j in rows] for i in rows])


def _softmax(scores: Floats) -> Floats:
    return np.exp(log_softmax(scores))
