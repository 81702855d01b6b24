"""MobileNetV2 (Sandler et al. 2018) with the parameter names and shapes of torchvision, so its files load."""

import torch
from torch import Tensor, nn

# Expansion, channels, depth and first stride of each stage: Table 2 of the paper.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU6; keeps the size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1; beside a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [conv_bn_relu6(inputs, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, inputs, H, W) to (N, outputs, H / stride, W / stride), both rounded up."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Images (N, 3, H, W) float32, normalised, to logits (N, outputs) float32; any H and W from 1 on.

    For a feature pyramid, `features[6]`, `features[13]` and `features[18]` give features of stride 8, 16 and 32:
    the sides are H / 8, H / 16 and H / 32 rounded up, the channels 32, 96 and 1280.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_bn_relu6(3, _STEM, 3, stride=2)]
        inputs = _STEM
        for expansion, channels, depth, first_stride in _STAGES:
            for index in range(depth):
                features.append(InvertedResidual(inputs, channels, first_stride if index == 0 else 1, expansion))
                inputs = channels
        features.append(conv_bn_relu6(inputs, _LAST, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST, outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float32, normalised, to logits (N, outputs)."""
        pooled = nn.functional.adaptive_avg_pool2d(self.features(images), (1, 1))
        logits: Tensor = self.classifier(torch.flatten(pooled, 1))
        return logits


def mobilenet_v2(outputs: int) -> MobileNetV2:
    """MobileNetV2 at width 1, 3.5 million parameters with 1000 outputs."""
    return MobileNetV2(outputs)
