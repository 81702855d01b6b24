"""Checks and shapes of what the training losses take; the rules are those of `models.loss_arguments`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import loss_arguments as check
from models.errors import InvalidInput

Alpha = float | Sequence[float] | Tensor | None


def widen(logits: Tensor) -> Tensor:
    """Return the logits in float32 or float64; the gradient comes back in their own dtype."""
    if not logits.is_floating_point():
        raise InvalidInput(f"logits must be floating point, not {logits.dtype}")
    return logits if logits.dtype == torch.float64 else logits.float()


def class_last(x: Tensor) -> Tensor:
    """Return [N, C, *spatial] as [rows, C]."""
    return x if x.ndim == 2 else x.movedim(1, -1).reshape(-1, x.shape[1])


def in_unit(t: Tensor) -> Tensor:
    """Return t; on the CPU raise where it is outside [0, 1]."""
    if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
        raise InvalidInput("targets must be in [0, 1]")
    return t


def read_labels(logits: Tensor, targets: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Return which rows count and their labels, 0 where ignored, both [rows]."""
    shape = (logits.shape[0], *logits.shape[2:])
    if tuple(targets.shape) != shape:
        raise InvalidInput(
            f"targets of shape {tuple(targets.shape)} fit neither {shape} (classes) nor {tuple(logits.shape)} (soft)"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidInput(f"targets must be integer class indices, not {targets.dtype}")
    labels = targets.detach().reshape(-1).long()
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    labels = torch.where(valid, labels, 0)
    if labels.device.type == "cpu":
        bad = ((labels < 0) | (labels >= logits.shape[1])).nonzero()
        if len(bad):
            row = int(bad[0])
            name = check.Namer(shape)(row)
            raise InvalidInput(f"target {int(labels[row])} of row {name} is not a class in 0..{logits.shape[1] - 1}")
    return valid, labels


def softmax_weights(alpha: Alpha, alpha_mode: str | None, classes: int, z: Tensor) -> Tensor | None:
    """Return alpha as class weights [C] of z's dtype and device, or None."""
    if isinstance(alpha, Tensor) and alpha.device.type != "cpu" and alpha.ndim == 1:
        # Reading its values would make the device wait; the module has checked them when it was made.
        if len(alpha) != classes:
            raise InvalidInput(f"alpha must hold one weight for each of the {classes} classes, not {len(alpha)}")
        return alpha.to(z)
    vector = alpha.tolist() if isinstance(alpha, Tensor) else alpha
    checked = check.softmax_alpha(vector, alpha_mode, classes)
    return None if checked is None else torch.as_tensor(checked).to(z)


def sigmoid_weights(alpha: Alpha, soft: str, z: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Return the weights of positives and of negatives, numbers or [C] of z's dtype and device."""
    classes = z.shape[-1] if z.ndim > 1 else None
    if isinstance(alpha, Tensor) and alpha.device.type != "cpu":
        if alpha.ndim and (classes is None or tuple(alpha.shape) != (classes,)):
            raise InvalidInput(f"alpha of shape {tuple(alpha.shape)} does not fit logits of shape {tuple(z.shape)}")
        return alpha.to(z), (1 - alpha).to(z)
    vector = alpha.tolist() if isinstance(alpha, Tensor) else alpha
    checked = check.sigmoid_alpha(vector, soft, classes)
    if checked is None or isinstance(checked, float):
        return (1.0, 1.0) if checked is None else (checked, 1.0 - checked)
    weights = torch.as_tensor(checked)
    return weights.to(z), (1 - weights).to(z)
