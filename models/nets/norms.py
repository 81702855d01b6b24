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

    def line(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (channels,): the norm of x is x * scale + shift."""
        weight, bias = cast(Tensor, self.weight), cast(Tensor, self.bias)
        mean, variance = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        scale = weight * (variance + self.eps).rsqrt()
        return scale, bias - mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels, H, W) to the same shape."""
        scale, shift = self.line()
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class FoldedNorm(FrozenBatchNorm2d):
    """A frozen norm that the convolution before it applies: it holds the numbers, under their names."""

    def forward(self, x: Tensor) -> Tensor:
        """The features as they are."""
        return x


class FoldedConv2d(nn.Conv2d):
    """A convolution with the frozen norm behind it in its weight and bias: a pass over weights, none over features."""

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            cast(tuple[int, int], conv.stride),
            cast(tuple[int, int], conv.padding),
            cast(tuple[int, int], conv.dilation),
            conv.groups,
            bias=False,
        )
        self.weight = conv.weight
        self.norm = (norm,)  # no submodule: its place in the state is behind the convolution, where it was

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, inputs, H, W) to normalised ones (N, outputs, H', W')."""
        scale, shift = self.norm[0].line()
        out: Tensor = self._conv_forward(x, self.weight * scale.view(-1, 1, 1, 1), shift)
        return out


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
    """Freezes every batch norm of a net, its numbers as they are.

    One that comes right behind a convolution without bias among its module's children is folded into it: so modules
    must define the two in the order in which they use them. Any other becomes a `FrozenBatchNorm2d`.
    """
    before: tuple[str, nn.Module] | None = None
    for name, module in list(net.named_children()):
        if not isinstance(module, nn.BatchNorm2d):
            freeze_norms(module)
            before = (name, module)
            continue
        folds = before is not None and isinstance(before[1], nn.Conv2d) and before[1].bias is None
        frozen = (FoldedNorm if folds else FrozenBatchNorm2d)(module.num_features, module.eps)
        frozen.load_state_dict({key: tensor for key, tensor in module.state_dict().items() if key in _FROZEN})
        setattr(net, name, frozen)
        if before is not None and isinstance(before[1], nn.Conv2d) and isinstance(frozen, FoldedNorm):
            setattr(net, before[0], FoldedConv2d(before[1], frozen))
        before = None


_FROZEN = ("weight", "bias", "running_mean", "running_var")
