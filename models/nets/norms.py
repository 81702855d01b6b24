"""Normalisation layers by name, for nets that see few images at once."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from models.errors import InvalidInput

_GROUP = 8
"""Channels of one group: 32 groups of 256 channels, as in Wu and He 2018."""


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and weights are constants, with torchvision's names: published ones.

    They are buffers, so that no optimizer changes them. Numbers as of `nn.BatchNorm2d` in evaluation.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels, H, W) to the same shape."""
        weight, bias = cast(Tensor, self.weight), cast(Tensor, self.bias)
        mean, variance = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        scale = weight * (variance + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (bias - mean * scale).view(1, -1, 1, 1)


def group_norm(channels: int) -> nn.Module:
    """Group normalisation with groups of 8 channels; independent of the other images of a batch.

    Raises:
        InvalidInput: the channels are no multiple of 8.
    """
    if channels % _GROUP:
        raise InvalidInput(f"group norm needs a multiple of {_GROUP} channels, not {channels}")
    return nn.GroupNorm(channels // _GROUP, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": group_norm,
}


def freeze_norms(net: nn.Module) -> None:
    """Puts a `FrozenBatchNorm2d` of the same numbers in the place of every batch norm in a net."""
    for name, module in list(net.named_children()):
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(module.num_features, module.eps)
            frozen.load_state_dict({key: tensor for key, tensor in module.state_dict().items() if key in _FROZEN})
            setattr(net, name, frozen)
        else:
            freeze_norms(module)


_FROZEN = ("weight", "bias", "running_mean", "running_var")
