"""Backbones of detectors: images to features of stride 8, 16 and 32, with the names of the classifiers they come from.

So a classifier's file of weights loads into a body (see models.nets.detector_weights). A body is cut where its deepest
wanted stage ends.
"""

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from models.nets.mobilenet import MobileNetV2
from models.nets.resnet import BasicBlock, Block, Bottleneck, ResNet
from models.nets.small import ResidualStage

_RESNET_WIDTHS = (128, 256, 512)
_MOBILENET_TAPS, _MOBILENET_CHANNELS = (6, 13, 18), (32, 96, 1280)
_SMALL_STEM, _SMALL_WIDTHS = (16, 32), (64, 128, 256)


class Body(nn.Module):
    """What the feature pyramid needs of a backbone.

    Attributes:
        channels: of the features that it gives, stride 8 first.
    """

    channels: tuple[int, ...]

    def stages(self) -> list[list[nn.Module]]:
        """The body's parts from the input on, the stem first: what `freeze_stages` counts."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) float32, normalised, to features of stride 8, 16, ...; sides are rounded up."""
        raise NotImplementedError


class ResNetBody(Body):
    """The part of a ResNet before its head; names as in torchvision's `backbone.body`."""

    def __init__(self, block: Block, depths: tuple[int, int, int, int], outputs: int) -> None:
        super().__init__()
        net = ResNet(block, depths, 1)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1 = net.layer1
        self.names = ("layer2", "layer3", "layer4")[:outputs]
        for name in self.names:
            self.add_module(name, net.get_submodule(name))
        self.channels = tuple(width * block.expansion for width in _RESNET_WIDTHS[:outputs])

    def stages(self) -> list[list[nn.Module]]:
        """Stem, then layer1 to the last."""
        return [[self.conv1, self.bn1], [self.layer1], *([self.get_submodule(name)] for name in self.names)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Body`."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        found = []
        for name in self.names:
            x = self.get_submodule(name)(x)
            found.append(x)
        return found


class MobileNetBody(Body):
    """The part of MobileNetV2 before its head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.taps = _MOBILENET_TAPS[:outputs]
        self.features = nn.Sequential(*list(MobileNetV2(1).features.children())[: self.taps[-1] + 1])
        self.channels = _MOBILENET_CHANNELS[:outputs]

    def stages(self) -> list[list[nn.Module]]:
        """Stem with the first block, then the blocks of stride 4, 8, ..."""
        blocks = list(self.features.children())
        ends = [0, 2, 4, 7, 14, 19]
        return [blocks[start:end] for start, end in itertools.pairwise(ends) if start < len(blocks)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Body`."""
        found, x = [], images
        for index, block in enumerate(self.features.children()):
            x = block(x)
            if index in self.taps:
                found.append(x)
        return found


class SmallBody(Body):
    """A small residual body for scenes of 100 to 300 pixels, quick to train on a CPU from scratch.

    Nothing is computed at stride 4, where a body spends most of its time.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        first, second = _SMALL_STEM
        self.stem = nn.Sequential(conv_bn_relu(3, first), conv_bn_relu(first, second))
        widths = (second, *_SMALL_WIDTHS[:outputs])
        self.blocks = nn.Sequential(*map(ResidualStage, widths[:-1], widths[1:], [2] * outputs))
        self.channels = widths[1:]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        """Stem, then the residual stages."""
        return [[self.stem], *([block] for block in self.blocks)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Body`."""
        found, x = [], self.stem(images)
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


def conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution that halves both sides, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def resnet_body(block: Block, *depths: int) -> Callable[[int], Body]:
    """A maker of ResNet bodies: how many feature maps are wanted to a body."""
    first, second, third, fourth = depths
    return lambda outputs: ResNetBody(block, (first, second, third, fourth), outputs)


BODIES: dict[str, Callable[[int], Body]] = {
    "small": SmallBody,
    "resnet18": resnet_body(BasicBlock, 2, 2, 2, 2),
    "resnet34": resnet_body(BasicBlock, 3, 4, 6, 3),
    "resnet50": resnet_body(Bottleneck, 3, 4, 6, 3),
    "mobilenet_v2": MobileNetBody,
}


def freeze_stages(body: Body, count: int) -> None:
    """Takes the first `count` stages of a body out of training: no gradients."""
    for stage in body.stages()[:count]:
        for module in stage:
            module.requires_grad_(False)
