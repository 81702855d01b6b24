"""Soft targets: the focal loss summed over every class a target speaks of (numpy).

Softmax has one convention here, "expected": sum over classes of t_c * alpha_c * FL(p_c), linear in the target.
Sigmoid has three, because published code differs: "expected", "interpolated" (p_t and alpha_t are mixed by the
target: torchvision, fvcore) and "qfl" (|t - p|^gamma * BCE, quality focal loss, Li et al. 2020).
"""

from collections.abc import Callable

import numpy as np

from models.focal_kernels import (
    Floats,
    Rows,
    chunks,
    focal_of_margin,
    modulation,
    probabilities,
    quiet,
    slope_of_margin,
    softplus,
)

TargetRows = Callable[[slice], Floats]
Weight = float | Floats


def sigmoid_values(z: Floats, t: Floats, gamma: float, soft: str, positive: Weight, negative: Weight) -> Floats:
    """Return the loss of each element, same shape and dtype as z.

    Args:
        z: logits.
        t: targets in [0, 1], same shape.
        gamma: focusing parameter.
        soft: "expected", "interpolated" or "qfl".
        positive: weight of a target of 1.
        negative: weight of a target of 0.
    """
    if soft == "expected":
        loss: Floats = t * positive * focal_of_margin(z, gamma)
        loss += (1 - t) * negative * focal_of_margin(-z, gamma)
        return loss
    log_gap = _log_mixed_gap(z, t) if soft == "interpolated" else _log_quality_gap(z, t)
    result: Floats = np.exp(gamma * log_gap) * _cross_entropy(z, t)
    result *= t * positive + (1 - t) * negative
    return result


def sigmoid_slopes(z: Floats, t: Floats, gamma: float, soft: str, positive: Weight, negative: Weight) -> Floats:
    """Return d loss / d z of each element; arguments as `sigmoid_values`.

    The qfl gradient at exactly t = p, a cusp for gamma < 1, is given as 0.
    """
    if soft == "expected":
        slope: Floats = t * positive * slope_of_margin(z, gamma)
        slope -= (1 - t) * negative * slope_of_margin(-z, gamma)
        return slope
    p, q, _ = probabilities(z)
    gap = p * (1 - t) - q * t
    if soft == "interpolated":
        log_gap = _log_mixed_gap(z, t)
        turn = (1 - 2 * t) * np.exp(-softplus(z) - softplus(-z) - log_gap + gamma * log_gap)
    else:
        log_gap = _log_quality_gap(z, t)
        steep = np.exp(-softplus(z) - softplus(-z) - log_gap + gamma * log_gap)
        turn = np.where(gap == 0, 0, np.sign(gap) * steep)
    slope = gamma * turn * _cross_entropy(z, t) + np.exp(gamma * log_gap) * gap
    slope *= t * positive + (1 - t) * negative
    return slope


def _cross_entropy(z: Floats, t: Floats) -> Floats:
    result: Floats = t * softplus(-z) + (1 - t) * softplus(z)
    return result


def _log_mixed_gap(z: Floats, t: Floats) -> Floats:
    # log(1 - p_t) with 1 - p_t = p (1 - t) + q t, which never cancels
    result: Floats = np.logaddexp(np.log1p(-t) - softplus(-z), np.log(t) - softplus(z))
    return result


def _log_quality_gap(z: Floats, t: Floats) -> Floats:
    p, q, _ = probabilities(z)
    inside = np.log(np.abs(p * (1 - t) - q * t))
    log_gap: Floats = np.where(t == 1, -softplus(z), np.where(t == 0, -softplus(-z), inside))
    # log 0 as a finite number, so that gamma = 0 makes it 0^0 = 1
    return np.maximum(log_gap, np.finfo(log_gap.dtype).min, out=log_gap)


class SoftmaxTargets:
    """Targets of a softmax loss as chunks [C, rows], weighted by class where alpha is given."""

    def __init__(self, rows: Rows, soft: Floats | None, smoothing: float, alpha: Floats | None) -> None:
        self.rows = rows
        self.soft = soft
        self.smoothing = smoothing
        self.alpha = alpha

    def __call__(self, part: slice) -> Floats:
        """Return t_c * alpha_c of rows `part` as [C, rows], zeros where ignored."""
        count, classes = part.stop - part.start, self.rows.logits.shape[1]
        dtype = self.rows.logits.dtype
        target: Floats
        if self.soft is not None:
            target = self.soft[part].T.astype(dtype) * dtype.type(1 - self.smoothing)
            target += dtype.type(self.smoothing / classes)
        else:
            target = np.full((classes, count), self.smoothing / classes, dtype)
            target[self.rows.labels[part], np.arange(count)] += dtype.type(1 - self.smoothing)
        if self.rows.valid is not None:
            target[:, ~self.rows.valid[part]] = 0
        return target if self.alpha is None else target * self.alpha[:, None]


def sample_weights(rows: Rows, soft: Floats | None, alpha: Floats | None) -> Floats:
    """Return alpha of each row's label, or its mean under a soft target, [N]; 1 without alpha, 0 where ignored."""
    weights: Floats
    if alpha is None:
        weights = np.ones(len(rows), rows.logits.dtype)
    elif soft is None:
        weights = alpha[rows.labels]
    else:
        weights = soft.astype(alpha.dtype) @ alpha
    return weights if rows.valid is None else weights * rows.valid


@quiet
def softmax_soft_values(rows: Rows, targets: TargetRows, gamma: float) -> Floats:
    """Return sum over c of t_c * alpha_c * FL(p_c), [N]."""
    values = np.empty(len(rows), rows.logits.dtype)
    work = rows.workspace()
    for part in chunks(len(rows), rows.logits.shape[1]):
        z = rows.load(part, work)
        rows.refuse_non_finite(z, part)
        loss = focal_of_margin(_all_margins(z), gamma)
        loss *= targets(part)
        np.sum(loss, axis=0, out=values[part])
    return values


@quiet
def softmax_soft_gradient(rows: Rows, targets: TargetRows, gamma: float) -> Floats:
    """Return the gradient of the summed values, [N, C]."""
    gradient = np.empty_like(rows.logits)
    work = rows.workspace()
    for part in chunks(len(rows), rows.logits.shape[1]):
        d = _all_margins(rows.load(part, work))
        p, q, cross_entropy = probabilities(d)
        # u / expm1(-u) = p * u / q with its limit -1 where q has underflowed
        ratio = np.where(cross_entropy == 0, -1, -cross_entropy / np.expm1(cross_entropy))
        phi = modulation(d, gamma) if gamma else np.ones_like(d)
        phi *= gamma * ratio - 1
        phi *= targets(part)
        gradient[part] = (phi * q - p * _sum_of_others(phi, p)).T
    return gradient


def _sum_of_others(phi: Floats, p: Floats) -> Floats:
    # phi.sum - phi would cancel at the likeliest class, where it is multiplied by p near 1
    columns = np.arange(phi.shape[1])
    best = p.argmax(axis=0)
    others: Floats = phi.sum(axis=0) - phi
    rest = phi.copy()
    rest[best, columns] = 0
    others[best, columns] = rest.sum(axis=0)
    return others


def _all_margins(z: Floats) -> Floats:
    """Turn logits [C, rows] into z_c - logsumexp of the others for every c; z is overwritten."""
    columns = np.arange(z.shape[1])
    best = z.argmax(axis=0)
    z -= z[best, columns]
    others = np.exp(z)
    others[best, columns] = 0
    total = others.sum(axis=0)
    np.subtract(total, others, out=others)
    np.log1p(others, out=others)
    z[best, columns] = -np.inf
    second = z.max(axis=0)
    lead = -second - np.log(np.exp(z - second).sum(axis=0))
    np.subtract(z, others, out=z)
    z[best, columns] = np.minimum(lead, np.finfo(z.dtype).max)
    return z
