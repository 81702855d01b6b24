"""RetinaNet (Lin et al. 2017) with the parameter names and shapes of torchvision's `retinanet_resnet50_fpn`."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.detector_spec import DetectorSpec
from models.errors import InvalidInput
from models.nets.bodies import Body
from models.nets.fpn import FeaturePyramid

PRIOR = 0.01
"""What every class's probability is at first (Lin et al. 2017, section 4.1)."""
DEEPEST = 5
"""The last level that a body gives; those above are made by the pyramid."""
FIRST = 3


class Backbone(nn.Module):
    """A body and the pyramid on it."""

    def __init__(self, body: Body, width: int, extra: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramid(body.channels, width, extra)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) float32, normalised, to one (N, width, ceil(H / stride), ceil(W / stride)) per level."""
        levels: list[Tensor] = self.fpn(self.body(images))
        return levels


class Tower(nn.Module):
    """The convolutions that one head puts before its last, the same on every level."""

    def __init__(self, width: int, depth: int, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(self._step(width, norm) for _ in range(depth)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                start_small(module)

    @staticmethod
    def _step(width: int, norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
        conv = nn.Conv2d(width, width, 3, padding=1, bias=norm is None)
        between = [] if norm is None else [norm(width)]
        return nn.Sequential(conv, *between, nn.ReLU(inplace=True))


class ClassificationHead(Tower):
    """Features to one logit per anchor and class."""

    def __init__(
        self, width: int, depth: int, norm: Callable[[int], nn.Module] | None, anchors: int, classes: int
    ) -> None:
        super().__init__(width, depth, norm)
        self.cls_logits = nn.Conv2d(width, anchors * classes, 3, padding=1)
        start_small(self.cls_logits, -math.log((1.0 - PRIOR) / PRIOR))
        self.classes = classes

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (N, width, H, W) to logits (N, A, K)."""
        return torch.cat([by_anchor(self.cls_logits(self.conv(level)), self.classes) for level in levels], dim=1)


class RegressionHead(Tower):
    """Features to four box deltas per anchor."""

    def __init__(self, width: int, depth: int, norm: Callable[[int], nn.Module] | None, anchors: int) -> None:
        super().__init__(width, depth, norm)
        self.bbox_reg = nn.Conv2d(width, anchors * 4, 3, padding=1)
        start_small(self.bbox_reg)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (N, width, H, W) to deltas (N, A, 4)."""
        return torch.cat([by_anchor(self.bbox_reg(self.conv(level)), 4) for level in levels], dim=1)


class RetinaNet(nn.Module):
    """Images to logits and box deltas of every anchor, in the order of `models.boxes.make_anchors`.

    Args:
        body: of the levels up to 5 that the detector has.
        spec: levels and ratios.
        classes: K.
        width: channels of the pyramid and the heads.
        depth: convolutions of each head before its last.
        norm: of the heads; None for none, as published.

    Raises:
        InvalidInput: levels that are not of strides 8, 16, 32, ... in a row, or with different numbers of sizes.
    """

    def __init__(
        self,
        body: Body,
        spec: DetectorSpec,
        classes: int,
        *,
        width: int,
        depth: int,
        norm: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        anchors = anchors_per_cell(spec)
        self.backbone = Backbone(body, width, extra_levels(spec))
        self.head = nn.ModuleDict(
            {
                "classification_head": ClassificationHead(width, depth, norm, anchors, classes),
                "regression_head": RegressionHead(width, depth, norm, anchors),
            }
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) float32, normalised, to logits (N, A, K) and deltas (N, A, 4)."""
        levels = self.backbone(images)
        return self.head["classification_head"](levels), self.head["regression_head"](levels)

    @property
    def body(self) -> Body:
        """The backbone below the pyramid."""
        return self.backbone.body


def anchors_per_cell(spec: DetectorSpec) -> int:
    """Anchors of a cell, the same on every level because the heads are.

    Raises:
        InvalidInput: levels with different numbers of sizes.
    """
    counts = {len(level.sizes) for level in spec.levels}
    if len(counts) != 1:
        raise InvalidInput(f"every level must have the same number of anchor sizes, not {sorted(counts)}")
    return counts.pop() * len(spec.ratios)


def body_outputs(spec: DetectorSpec) -> int:
    """How many of the strides 8, 16 and 32 a body must give.

    Raises:
        InvalidInput: levels that are not of strides 8, 16, 32, ... in a row.
    """
    strides = [level.stride for level in spec.levels]
    if strides != [2 ** (FIRST + k) for k in range(len(strides))]:
        raise InvalidInput(f"levels must be of strides 8, 16, 32 and so on without a gap, not {strides}")
    return min(len(strides), DEEPEST - FIRST + 1)


def extra_levels(spec: DetectorSpec) -> int:
    """Levels beyond stride 32."""
    return len(spec.levels) - body_outputs(spec)


def by_anchor(maps: Tensor, values: int) -> Tensor:
    """Maps (N, anchors * values, H, W) to rows (N, H * W * anchors, values): row by row, column by column."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)


def start_small(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """First values of a head's convolution: weights of standard deviation .01."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
