"""Nets behind their normalisation: what training evaluates and a bundle runs. The classifier's is in export.py."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.boxes import make_anchors
from models.card import ImageInput
from models.detector_spec import DetectorSpec
from models.nets.box_losses import decode

CANDIDATES = 1000
"""Boxes of one image, each with one class, that suppression looks at: those of the best scores."""


class Served(nn.Module):
    """A net and the normalisation of its images."""

    def __init__(self, net: nn.Module, spec: ImageInput) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("shift", torch.tensor(spec.mean).mul(255.0).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(spec.std).mul(255.0).reciprocal().view(1, 3, 1, 1), persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to float32 (N, 3, H, W), in the memory order channels last."""
        shift, scale = cast(Tensor, self.shift), cast(Tensor, self.scale)
        return (image.permute(0, 3, 1, 2).to(torch.float32) - shift) * scale


class ServedDetector(Served):
    """A detector, up to the boxes that suppression chooses from."""

    def __init__(self, net: nn.Module, spec: ImageInput, detector: DetectorSpec) -> None:
        super().__init__(net, spec)
        self.size = (spec.height, spec.width)
        anchors = make_anchors(detector, *self.size).astype(np.float32)
        self.register_buffer("anchors", torch.from_numpy(anchors), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the net says of images, and its best boxes.

        Args:
            image: uint8 (N, H, W, 3), 0-255.

        Returns:
            Logits (N, A, K) and deltas (N, A, 4), float32; then, by falling score, C candidates of each image, 1,000
            at most: boxes (N, C, 4) float32, input pixels, clipped to the input; scores (N, C) float32, 0 where
            clipping left nothing of the box; classes (N, C) int64.
        """
        logits, deltas = self.net(self.normalize(image).contiguous())
        return (logits, deltas, *self.candidates(logits, deltas))

    def candidates(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last three of `forward`, for logits (N, A, K) and deltas (N, A, 4)."""
        classes = logits.shape[2]
        best, order = logits.flatten(1).topk(min(CANDIDATES, logits.shape[1] * classes), dim=1)
        anchor = torch.div(order, classes, rounding_mode="floor")
        label = order - anchor * classes
        rows = anchor.unsqueeze(-1).expand(-1, -1, 4)
        boxes = decode(deltas.gather(1, rows), cast(Tensor, self.anchors)[anchor])
        height, width = self.size
        limit = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        seen = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1)
        return boxes, torch.where(seen, best.sigmoid(), 0.0), label
