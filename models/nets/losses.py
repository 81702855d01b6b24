"""Focal loss for training: torch twins of `models.losses`, with the same closed-form gradients.

Half precision is computed in float32 and the gradient handed back in the logits' dtype. A second derivative
(create_graph=True) is refused. Logits that are NaN or infinite give a loss that is not finite, so that a gradient
scaler can see it. The classes of targets are checked on the CPU; on other devices a wrong class fails in the device's
own assertion.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models import loss_arguments as check
from models.errors import InvalidInput
from models.nets.focal_kernels import SIGMOID_SOFT, ClosedForm, sigmoid_hard, softmax_hard, softmax_soft
from models.nets.loss_inputs import (
    Alpha,
    class_last,
    in_unit,
    read_labels,
    sigmoid_weights,
    softmax_weights,
    widen,
)
from models.reductions import ALIASES, TOTALS


def softmax_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Alpha = None,
    alpha_mode: str | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    soft: str = "expected",
) -> Tensor:
    """Focal loss of one label out of C: -alpha_y * (1 - p_y)^gamma * log p_y with p = softmax(logits).

    Args:
        logits: [N, C] or [N, C, *spatial], C >= 2, any float dtype.
        targets: class indices, integer, [N] or [N, *spatial]; or soft targets in [0, 1] of the logits' shape.
        gamma: focusing parameter, finite, >= 0.
        alpha: None or one weight >= 0 per class, [C]; a scalar needs `alpha_mode`.
        alpha_mode: "uniform" lets a scalar alpha multiply every class.
        reduction: "none", "sum", "mean" (by valid samples) or "mean_weighted" (by their sum of alpha).
        ignore_index: class index whose rows count nowhere, whatever their logits. Soft targets are never ignored.
        label_smoothing: eps in [0, 1]: targets become t * (1 - eps) + eps / C.
        soft: only "expected", sum over c of t_c * alpha_c * FL(p_c).

    Returns:
        A scalar, or [N] or [N, *spatial] for "none", in nats; float32, or float64 for float64 logits. The mean of
        nothing is 0 with a zero gradient, so that a batch with every label ignored trains nothing.

    Raises:
        InvalidInput: an argument out of its range, shapes that do not fit, a target that is no class.
    """
    check.check_soft(soft, allowed=("expected",))
    kind = _reduction("softmax", reduction)
    gamma, eps = check.check_gamma(gamma), check.check_smoothing(label_smoothing)
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise InvalidInput(f"logits must be [N, C] or [N, C, *spatial] with C >= 2, not shape {tuple(logits.shape)}")
    z, classes = class_last(widen(logits)), logits.shape[1]
    weights = softmax_weights(alpha, alpha_mode, classes, z)
    if targets.shape == logits.shape:
        t = in_unit(class_last(targets.detach()).to(z.dtype))
        valid = torch.ones(len(z), dtype=torch.bool, device=z.device)
        per_row = valid.to(z.dtype) if weights is None else t @ weights
        values, gradient = _soft_terms(z, t, gamma, eps, weights)
    else:
        valid, labels = read_labels(logits, targets, ignore_index)
        per_row = valid.to(z.dtype) if weights is None else weights[labels] * valid
        clean = torch.where(valid.unsqueeze(1), z.detach(), 0.0)
        if eps == 0.0:
            values, gradient = softmax_hard(clean, labels, gamma, per_row)
        else:
            one_hot = nn.functional.one_hot(labels, classes).to(z.dtype)
            values, gradient = _soft_terms(clean, one_hot, gamma, eps, weights, valid)
    losses = _attach(z, values, gradient, 1)
    if kind == "none":
        return losses.reshape(logits.shape[0], *logits.shape[2:])
    return _reduce(losses, kind, {"mean": valid.sum(), "mean_weighted": per_row.sum()})


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Alpha = None,
    reduction: str = "mean",
    ignore_index: float | None = None,
    label_smoothing: float = 0.0,
    soft: str = "expected",
) -> Tensor:
    """Focal loss of independent yes/no labels: -alpha_t * (1 - p_t)^gamma * log p_t with p = sigmoid(logits).

    Args:
        logits: [N] or [..., C], any float dtype.
        targets: 0 and 1, or soft targets in [0, 1]; shape of the logits, any dtype.
        gamma: focusing parameter, finite, >= 0.
        alpha: None; a number in [0, 1] (positives weigh alpha, negatives 1 - alpha); or one per class, [C].
        reduction: "none", "sum", "mean" (by valid elements), "num_positive" (by max(1, valid targets above 0.5), as
            RetinaNet) or "batchmean" (by the product of all axes but the last).
        ignore_index: target value whose elements count nowhere, whatever their logits.
        label_smoothing: eps in [0, 1]: targets become t * (1 - eps) + eps / 2.
        soft: "expected", "interpolated" (torchvision, fvcore) or "qfl" (no alpha); all agree on 0 and 1.

    Returns:
        A scalar, or the shape of the logits for "none", in nats; float32, or float64 for float64 logits. The mean of
        nothing is 0 with a zero gradient.

    Raises:
        InvalidInput: an argument out of its range, shapes that do not fit, a target outside [0, 1] (on the CPU).
    """
    check.check_soft(soft)
    kind = _reduction("sigmoid", reduction)
    gamma, eps = check.check_gamma(gamma), check.check_smoothing(label_smoothing)
    if targets.shape != logits.shape or logits.ndim == 0:
        raise InvalidInput(f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}")
    z = widen(logits)
    yes, no = sigmoid_weights(alpha, soft, z)
    counted = targets.detach()
    valid = torch.ones_like(counted, dtype=torch.bool) if ignore_index is None else counted != ignore_index
    given = in_unit(torch.where(valid, counted, 0).to(z.dtype))
    clean = torch.where(valid, z.detach(), 0.0)
    if eps == 0.0 and not counted.is_floating_point():
        values, gradient = sigmoid_hard(clean, given > 0.5, gamma, yes, no)
    else:
        values, gradient = SIGMOID_SOFT[soft](clean, given * (1 - eps) + eps / 2, gamma, yes, no)
    losses = _attach(z, torch.where(valid, values, 0.0), torch.where(valid, gradient, 0.0), None)
    if kind == "none":
        return losses
    rows = torch.tensor(logits.shape[0] if logits.ndim == 1 else math.prod(logits.shape[:-1]), device=z.device)
    positives = (given > 0.5).sum()
    return _reduce(losses, kind, {"mean": valid.sum(), "num_positive": positives, "batchmean": rows})


class FocalLoss(nn.Module):
    """Softmax focal loss as a module; gamma = 0 is `nn.CrossEntropyLoss` (with weights: reduction "mean_weighted").

    Attributes:
        alpha: float64 [C] buffer: moves and is saved with the module, and is cast to the logits' dtype in use.
    """

    alpha: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.gamma = check.check_gamma(gamma)
        self.label_smoothing = check.check_smoothing(label_smoothing)
        self.reduction = _reduction("softmax", reduction)
        self.ignore_index = ignore_index
        vector = None if alpha is None else alpha.tolist() if isinstance(alpha, Tensor) else alpha
        checked = None if vector is None else check.softmax_alpha(vector, None, max(1, np.size(vector)))
        self.register_buffer("alpha", None if checked is None else torch.from_numpy(checked))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss; see `softmax_focal_loss`."""
        return softmax_focal_loss(
            logits,
            targets,
            gamma=self.gamma,
            alpha=self.alpha,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )


class SigmoidFocalLoss(nn.Module):
    """Sigmoid focal loss as a module.

    Attributes:
        alpha: float64 buffer, scalar or [C], or None: moves and is saved with the module.
    """

    alpha: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Alpha = None,
        reduction: str = "mean",
        ignore_index: float | None = None,
        label_smoothing: float = 0.0,
        soft: str = "expected",
    ) -> None:
        super().__init__()
        self.gamma = check.check_gamma(gamma)
        self.label_smoothing = check.check_smoothing(label_smoothing)
        self.reduction = _reduction("sigmoid", reduction)
        self.ignore_index = ignore_index
        self.soft = check.check_soft(soft)
        vector = alpha.tolist() if isinstance(alpha, Tensor) else alpha
        checked = check.sigmoid_alpha(vector, soft, max(1, np.size(vector)) if vector is not None else None)
        self.register_buffer("alpha", None if checked is None else torch.as_tensor(checked, dtype=torch.float64))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss; see `sigmoid_focal_loss`."""
        return sigmoid_focal_loss(
            logits,
            targets,
            gamma=self.gamma,
            alpha=self.alpha,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            soft=self.soft,
        )


def _reduction(kind: str, reduction: str) -> str:
    name = ALIASES.get(reduction, reduction)
    known = ("none", *TOTALS[kind])
    if name not in known:
        aliases = [alias for alias, target in ALIASES.items() if target in known]
        raise InvalidInput(f"unknown reduction {reduction!r} for {kind}; known: {', '.join((*known, *aliases))}")
    return name


def _reduce(losses: Tensor, kind: str, denominators: dict[str, Tensor]) -> Tensor:
    if kind == "sum":
        return losses.sum()
    denominator = denominators[kind].to(losses.dtype)
    # The sum over nothing is 0, so any divisor will do there; for positives, max(1, count) is the definition.
    return losses.sum() / torch.where(denominator > 0, denominator, 1.0)


def _attach(z: Tensor, values: Tensor, gradient: Tensor, class_dim: int | None) -> Tensor:
    losses: Tensor = ClosedForm.apply(z, values, gradient, class_dim)  # type: ignore[no-untyped-call]
    return losses


@torch.no_grad()
def _soft_terms(
    z: Tensor, t: Tensor, gamma: float, eps: float, weights: Tensor | None, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    mixed = t * (1 - eps) + eps / z.shape[1]
    if valid is not None:
        mixed = mixed * valid.unsqueeze(1)
    return softmax_soft(z.detach(), mixed if weights is None else mixed * weights, gamma)
