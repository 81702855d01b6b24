"""Feature pyramid (Lin et al. 2016) with the parameter names and shapes of torchvision."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Features of stride 8, 16, ... to as many, all of the same width, each knowing what the coarser ones saw.

    `extra` more levels are made from the last one by convolutions of stride 2 (P6 and P7 of RetinaNet).
    """

    def __init__(self, inputs: Sequence[int], width: int, extra: int) -> None:
        super().__init__()
        # Each convolution sits in a Sequential of its own because torchvision's do: `inner_blocks.0.0.weight`.
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(each, width, 1)) for each in inputs)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1)) for _ in inputs)
        strided = {f"p{6 + k}": nn.Conv2d(width, width, 3, 2, padding=1) for k in range(extra)}
        if strided:
            self.extra_blocks = nn.ModuleDict(strided)
        self.extra = tuple(strided)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (N, inputs[i], H_i, W_i) to (N, width, H_i, W_i), then the extra levels, each half as large."""
        above = self.inner_blocks[-1](features[-1])
        found = [self.layer_blocks[-1](above)]
        for index in reversed(range(len(features) - 1)):
            own = self.inner_blocks[index](features[index])
            above = own + functional.interpolate(above, size=own.shape[-2:], mode="nearest")
            found.insert(0, self.layer_blocks[index](above))
        for position, name in enumerate(self.extra):
            below = found[-1] if position == 0 else functional.relu(found[-1])
            found.append(self.extra_blocks[name](below))
        return found
