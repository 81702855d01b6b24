"""The focal loss in closed form with its gradients, from logits, in log space (numpy).

    FL = -alpha_t * (1 - p_t)^gamma * log p_t

after Lin et al., "Focal Loss for Dense Object Detection", 2017: `softmax_focal` for one label out of C, `sigmoid_focal`
for C independent yes/no labels. gamma = 0 is cross-entropy. Losses and gradients are finite for every finite logit and
every gamma >= 0, nothing is clipped, and a confidently wrong label keeps its full loss. Chunks of about 65k elements
are worked on in place, so that memory traffic is one read of the logits.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models import loss_arguments as check
from models.errors import InvalidInput
from models.focal_elements import Rule, elements_of
from models.focal_kernels import Floats, each, focal_of_margin, scan_rows, slope_of_margin, spread_slope
from models.focal_soft import SoftmaxTargets, sample_weights, softmax_soft_gradient, softmax_soft_values
from models.reductions import FocalTerms, Reduced, reduced_gradient, total

__all__ = [
    "FocalTerms",
    "Reduced",
    "binary_margin_focal",
    "margin",
    "reduced_gradient",
    "sigmoid_focal",
    "softmax_focal",
    "total",
]

Alpha = float | Sequence[float] | NDArray[Any] | None


def softmax_focal(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: Alpha = None,
    alpha_mode: Literal["uniform"] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    soft: str = "expected",
) -> FocalTerms:
    """Focal loss of one label out of C: -alpha_y * (1 - p_y)^gamma * log p_y with p = softmax(logits).

    Args:
        logits: [N, C] or [N, C, *spatial], C >= 2, finite where not ignored. float32 and float64 are kept, float16
            is computed in float32, integers in float64.
        targets: class indices 0..C-1, int, [N] or [N, *spatial]; or soft targets in [0, 1] of the logits' shape, of
            which the loss is linear: sum over c of t_c * alpha_c * FL(p_c). Rows need not sum to 1.
        gamma: focusing parameter, finite, >= 0.
        alpha: None or one finite weight >= 0 per class, [C]. A scalar needs `alpha_mode`.
        alpha_mode: "uniform" lets a scalar alpha multiply every class.
        label_smoothing: eps in [0, 1]: targets become t * (1 - eps) + eps / C.
        ignore_index: class index whose rows count nowhere, whatever their logits, NaN included. Soft targets are
            never ignored.
        soft: the soft-target convention; softmax knows only "expected".

    Returns:
        Losses in nats with their gradient, see `FocalTerms`.

    Raises:
        InvalidInput: an argument out of its range, a target that is no class, a logit that is not finite, or a loss
            that overflows the dtype; each named by its index.
    """
    gamma, smoothing = check.check_gamma(gamma), check.check_smoothing(label_smoothing)
    check.check_soft(soft, allowed=("expected",))
    z = check.as_floats(logits)
    rows, given = check.as_rows(z, targets, ignore_index)
    weights = check.softmax_alpha(alpha, alpha_mode, z.shape[1])
    cast = None if weights is None else weights.astype(z.dtype)
    shape = (z.shape[0], *z.shape[2:])
    per_row = sample_weights(rows, given, cast)
    if given is None and smoothing == 0.0:
        scan = scan_rows(rows)
        values = each(focal_of_margin, scan.margin, gamma, per_row)

        def rows_gradient() -> Floats:
            return spread_slope(rows, scan, each(slope_of_margin, scan.margin, gamma, per_row))
    else:
        scan = None
        mixed = SoftmaxTargets(rows, given, smoothing, cast)
        values = softmax_soft_values(rows, mixed, gamma)

        def rows_gradient() -> Floats:
            return softmax_soft_gradient(rows, mixed, gamma)

    check.refuse_overflow(values, shape)
    count = len(rows) if rows.valid is None else int(np.count_nonzero(rows.valid))
    return FocalTerms(
        kind="softmax",
        values=values.reshape(shape),
        valid=check.as_mask(rows.valid, shape),
        count=count,
        positives=count,
        weights=per_row.reshape(shape),
        rows=len(rows),
        compute_gradient=lambda: check.from_rows(rows_gradient(), z.shape),
        compute_margin=None if scan is None else scan.margin.reshape(shape).copy,
    )


def sigmoid_focal(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: Alpha = None,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    soft: str = "expected",
) -> FocalTerms:
    """Focal loss of independent yes/no labels: -alpha_t * (1 - p_t)^gamma * log p_t with p = sigmoid(logits).

    Args:
        logits: [N] or [..., C], finite where not ignored. float32 and float64 are kept, float16 is computed in
            float32, integers in float64.
        targets: 0 and 1, or soft targets in [0, 1]; shape of the logits.
        gamma: focusing parameter, finite, >= 0.
        alpha: None; a number a in [0, 1] (positives weigh a, negatives 1 - a); or one such number per class, [C].
        label_smoothing: eps in [0, 1]: targets become t * (1 - eps) + eps / 2.
        ignore_index: target value whose elements count nowhere, whatever their logits, NaN included.
        soft: what a target between 0 and 1 means: "expected" (t * FL of yes + (1 - t) * FL of no), "interpolated"
            (torchvision, fvcore) or "qfl" (|t - p|^gamma * BCE, no alpha). All agree on 0 and 1.

    Returns:
        Losses in nats with their gradient, see `FocalTerms`.

    Raises:
        InvalidInput: an argument out of its range, a target outside [0, 1], a logit that is not finite, or a loss
            that overflows the dtype; each named by its index.
    """
    check.check_soft(soft)
    z = check.as_floats(logits)
    classes = z.shape[-1] if z.ndim > 1 else None
    weights = check.sigmoid_alpha(alpha, soft, classes)
    elements = elements_of(z, targets, check.check_smoothing(label_smoothing), ignore_index, weights)
    rule = Rule(check.check_gamma(gamma), soft, label_smoothing)
    values = elements.values(rule)
    check.refuse_overflow(values, z.shape)
    return FocalTerms(
        kind="sigmoid",
        values=values.reshape(z.shape),
        valid=check.as_mask(elements.valid, z.shape),
        count=elements.count(),
        positives=elements.positives,
        weights=None,
        rows=z.size if classes is None else z.size // max(1, classes),
        compute_gradient=lambda: elements.gradient(rule).reshape(z.shape),
        compute_margin=(lambda: elements.margin().reshape(z.shape)) if elements.is_hard else None,
    )


def margin(logits: ArrayLike, targets: ArrayLike) -> NDArray[Any]:
    """Log-odds of the given label: z_y - logsumexp of the other logits = log(p_y / (1 - p_y)).

    Args:
        logits: [N, C] or [N, C, *spatial], C >= 2, finite.
        targets: class indices 0..C-1, int, [N] or [N, *spatial].

    Returns:
        [N] or [N, *spatial], any real number; below 0 means p_y < 1/2.

    Raises:
        InvalidInput: shapes that do not fit, a target that is no class, a logit that is not finite.
    """
    z = check.as_floats(logits)
    rows, soft = check.as_rows(z, targets, None)
    if soft is not None:
        raise InvalidInput("a margin needs class indices, not soft targets")
    return scan_rows(rows).margin.reshape((z.shape[0], *z.shape[2:]))


def binary_margin_focal(margin: ArrayLike, gamma: float) -> NDArray[Any]:
    """Focal loss as a function of the label's log-odds: (1 - sigmoid(d))^gamma * softplus(-d).

    Softmax and sigmoid focal loss are both this function of one number, strictly decreasing in it.

    Args:
        margin: d, any shape, finite.
        gamma: focusing parameter, finite, >= 0.

    Returns:
        Losses in nats, shape of margin.

    Raises:
        InvalidInput: gamma out of range, or a margin that is not finite.
    """
    d = check.as_floats(margin)
    if not np.isfinite(d).all():
        raise InvalidInput("margins must be finite")
    return each(focal_of_margin, d.reshape(-1), check.check_gamma(gamma), np.ones(d.size, d.dtype)).reshape(d.shape)
