"""Torch twins of the numpy focal kernels: values and closed-form gradients, written with abs, exp and log1p.

Never with logsigmoid or BCE-with-logits: those lose easy samples in float32 and export as Log(Sigmoid(x)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

Weight = float | Tensor


class ClosedForm(torch.autograd.Function):
    """Values whose gradient with respect to the logits is already known."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, values: Tensor, gradient: Tensor, class_dim: int | None) -> Tensor:
        """Keep d(sum of values)/d(logits); `class_dim` is the axis of logits that values lack, None if the same."""
        ctx.save_for_backward(gradient)
        ctx.class_dim = class_dim  # type: ignore[attr-defined]
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the known gradient; refuse to be part of a second derivative.

        Raises:
            RuntimeError: under create_graph=True, where the known gradient would silently count as a constant.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the focal loss cannot be differentiated twice: its gradient is a closed form that autograd does not"
                " see into, so create_graph=True is refused"
            )
        (gradient,) = ctx.saved_tensors
        above = outputs[0] if ctx.class_dim is None else outputs[0].unsqueeze(ctx.class_dim)
        return gradient * above, None, None, None


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to full precision (torch's own stops at x = 20, with a relative error of 1e-10)."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


def focal_of_margin(d: Tensor, gamma: float) -> Tensor:
    """L(d) = q^gamma * softplus(-d), q = sigmoid(-d)."""
    return softplus(-d) if gamma == 0.0 else softplus(-d) * modulation(d, gamma)


def slope_of_margin(d: Tensor, gamma: float) -> Tensor:
    """dL/dd = q^gamma * (-gamma * p * softplus(-d) - q)."""
    p, q = probabilities(d)
    return -q if gamma == 0.0 else modulation(d, gamma) * (-gamma * p * softplus(-d) - q)


def modulation(d: Tensor, gamma: float) -> Tensor:
    """q^gamma = exp(-gamma * softplus(d))."""
    return (softplus(d) * -gamma).exp()


def probabilities(d: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(d) and sigmoid(-d), each to full relative precision."""
    tail = (-d.abs()).exp()
    near = 1 / (1 + tail)
    far = tail * near
    return torch.where(d >= 0, near, far), torch.where(d >= 0, far, near)


def softmax_hard(z: Tensor, labels: Tensor, gamma: float, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values [M] and gradient [M, C] for logits [M, C], int64 labels [M] and the weight of each row [M]."""
    own = labels.unsqueeze(1)
    others = z.scatter(1, own, float("-inf"))
    top = others.amax(dim=1, keepdim=True)
    shares = (others - top).exp()
    total = shares.sum(dim=1, keepdim=True)
    d = ((z.gather(1, own) - top) - total.log()).squeeze(1)
    slope = slope_of_margin(d, gamma) * weight
    gradient = (shares / total * -slope.unsqueeze(1)).scatter(1, own, slope.unsqueeze(1))
    return focal_of_margin(d, gamma) * weight, gradient


def softmax_soft(z: Tensor, t: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Values [M] and gradient [M, C] of sum over c of t_c * FL(p_c); t [M, C] carries alpha."""
    best = z.argmax(dim=1, keepdim=True)
    d = _all_margins(z, best)
    p, q = probabilities(d)
    cross_entropy = softplus(-d)
    ratio = torch.where(cross_entropy == 0, -1.0, -cross_entropy / torch.expm1(cross_entropy))
    phi = t * modulation(d, gamma) * (gamma * ratio - 1)
    # The likeliest class is summed apart: phi.sum - phi would cancel there.
    rest = phi.scatter(1, best, 0.0).sum(dim=1, keepdim=True)
    others = (phi.sum(dim=1, keepdim=True) - phi).scatter(1, best, rest)
    return (t * focal_of_margin(d, gamma)).sum(dim=1), phi * q - p * others


def _all_margins(z: Tensor, best: Tensor) -> Tensor:
    shifted = z - z.gather(1, best)
    shares = shifted.exp().scatter(1, best, 0.0)
    d = shifted - (shares.sum(dim=1, keepdim=True) - shares).log1p()
    behind = shifted.scatter(1, best, float("-inf"))
    second = behind.amax(dim=1, keepdim=True)
    lead = -second - (behind - second).exp().sum(dim=1, keepdim=True).log()
    return d.scatter(1, best, lead)


def sigmoid_hard(z: Tensor, positive: Tensor, gamma: float, yes: Weight, no: Weight) -> tuple[Tensor, Tensor]:
    """Values and gradient, shape of z; `positive` bool, weights of positives and negatives."""
    sign = positive.to(z.dtype) * 2 - 1
    d = z * sign
    weight = (1 + sign) / 2 * yes + (1 - sign) / 2 * no
    return focal_of_margin(d, gamma) * weight, slope_of_margin(d, gamma) * (weight * sign)


def sigmoid_expected(z: Tensor, t: Tensor, gamma: float, yes: Weight, no: Weight) -> tuple[Tensor, Tensor]:
    """Values and gradient of t * yes * FL(z) + (1 - t) * no * FL(-z), shape of z."""
    up, down = t * yes, (1 - t) * no
    values = up * focal_of_margin(z, gamma) + down * focal_of_margin(-z, gamma)
    return values, up * slope_of_margin(z, gamma) - down * slope_of_margin(-z, gamma)


def sigmoid_interpolated(z: Tensor, t: Tensor, gamma: float, yes: Weight, no: Weight) -> tuple[Tensor, Tensor]:
    """Values and gradient with p_t and alpha_t mixed by the target (torchvision, fvcore), shape of z."""
    p, q = probabilities(z)
    gap = p * (1 - t) - q * t
    log_gap = torch.logaddexp((-t).log1p() - softplus(-z), t.log() - softplus(z))
    bce = t * softplus(-z) + (1 - t) * softplus(z)
    weight = t * yes + (1 - t) * no
    turn = (1 - 2 * t) * (gamma * log_gap - log_gap - softplus(z) - softplus(-z)).exp()
    bent = (gamma * log_gap).exp()
    return weight * bent * bce, weight * (gamma * turn * bce + bent * gap)


def sigmoid_qfl(z: Tensor, t: Tensor, gamma: float, yes: Weight, no: Weight) -> tuple[Tensor, Tensor]:
    """Values and gradient of |t - p|^gamma * BCE, shape of z; 0 slope at the cusp t = p. Weights are not used."""
    p, q = probabilities(z)
    gap = p * (1 - t) - q * t
    log_gap = torch.where(t == 1, -softplus(z), torch.where(t == 0, -softplus(-z), gap.abs().log()))
    log_gap = log_gap.clamp(min=torch.finfo(z.dtype).min)
    bce = t * softplus(-z) + (1 - t) * softplus(z)
    steep = (gamma * log_gap - log_gap - softplus(z) - softplus(-z)).exp()
    turn = torch.where(gap == 0, 0.0, gap.sign() * steep)
    bent = (gamma * log_gap).exp()
    return bent * bce, gamma * turn * bce + bent * gap


SIGMOID_SOFT = {"expected": sigmoid_expected, "interpolated": sigmoid_interpolated, "qfl": sigmoid_qfl}
