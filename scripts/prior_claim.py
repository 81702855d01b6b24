"""Does the prior of a detector's class scores matter, and does focal loss? The claim of its article, tried small.

Lin et al. (2017): among thousands of anchors that learn nothing but background, training with cross-entropy diverges
unless every class starts at a small probability, and focal loss is better still. They trained with SGD and no clipping
of gradients. Here each variant trains the small detector on composed scenes, from the same weights and batches, by
plain SGD without clipping; and by AdamW with clipping, which forgives a bad start.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from torch import Tensor, nn

from models.boxes import make_anchors
from models.card import ImageInput, LossSpec
from models.errors import InvalidInput
from models.nets.box_losses import collect_targets, detection_losses, find_matches
from models.nets.detectors import build_detector, plan_of
from models.nets.served import ServedDetector
from scripts.box_metrics import Detections, measure_boxes
from scripts.box_validation import choose_boxes
from scripts.flags import Flags
from scripts.items import embedded_items, merge_items
from scripts.scenes import Scenes, compose_scenes

_BATCH = 16
_BOX_WEIGHT = 0.33
_CLIP = 10.0
_WARMUP = 0.1


class ClaimFlags(Flags):
    """Print first loss, gradient norm and AP50 of each variant. Example: python -m scripts.prior_claim."""

    model_config = SettingsConfigDict(cli_prog_name="python -m scripts.prior_claim")

    steps: Annotated[int, Field(ge=1)] = Field(300, description="of each training, 16 scenes each")
    scenes: Annotated[int, Field(ge=16)] = Field(1000, description="training scenes")
    val: Annotated[int, Field(ge=1)] = Field(200, description="validation scenes, from other garments")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of scenes, weights and order")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0: as torch chooses")


@dataclass(frozen=True)
class Variant:
    """One training.

    Attributes:
        name: for the table.
        loss: of the classes.
        prior: whether every class starts at probability .01; otherwise at .5.
        adam: AdamW at 3e-3 with gradients clipped to 10; otherwise SGD at .01 with momentum .9, not clipped.
    """

    name: str
    loss: LossSpec
    prior: bool
    adam: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        first_loss: of the first batch, classes and weighted boxes.
        first_norm: of its gradient, before any clipping.
        last_loss: of the last batch; NaN where training diverged.
        ap50: on the validation scenes, 0 where training diverged.
    """

    first_loss: float
    first_norm: float
    last_loss: float
    ap50: float


_CROSS_ENTROPY, _FOCAL = LossSpec(gamma=0.0), LossSpec(gamma=2.0, alpha=0.25)
VARIANTS = tuple(
    Variant(f"{how}, {name}", loss, prior, adam)
    for how, adam in (("SGD, no clipping", False), ("AdamW, clipped", True))
    for name, loss, prior in (
        ("cross-entropy, no prior", _CROSS_ENTROPY, False),
        ("cross-entropy, prior", _CROSS_ENTROPY, True),
        ("focal, prior", _FOCAL, True),
    )
)


def main(argv: Sequence[str]) -> int:
    """Trains every variant and prints the table."""
    flags = ClaimFlags.parse(argv)
    if flags.threads:
        torch.set_num_threads(flags.threads)
    train = compose_scenes(merge_items(embedded_items("train")), flags.scenes, flags.seed)
    val = compose_scenes(merge_items(embedded_items("test")), flags.val, flags.seed)
    print(f"{flags.steps} steps of {_BATCH} composed scenes, {len(train.labels)} classes, seed {flags.seed}")
    print("| training | first loss | its gradient's norm | last loss | AP50 |\n|---|---|---|---|---|", flush=True)
    for variant in VARIANTS:
        got = try_variant(variant, train, val, flags.steps, flags.seed)
        row = f"{got.first_loss:.1f} | {got.first_norm:.1f} | {got.last_loss:.2f} | {got.ap50:.3f}"
        print(f"| {variant.name} | {row} |", flush=True)
    return 0


def try_variant(variant: Variant, train: Scenes, val: Scenes, steps: int, seed: int) -> Outcome:
    """Trains the small detector from fresh weights, the same for every variant but for the prior."""
    torch.manual_seed(seed)
    spec, size = plan_of("small").spec(), train.pixels.shape[1]
    net = build_detector("small", len(train.labels), spec)
    if not variant.prior:
        forget_prior(net)
    served = ServedDetector(net, ImageInput(height=size, width=size), spec)
    anchors = make_anchors(spec, size, size)
    matches = [find_matches(anchors, own, spec) for own in train.boxes]
    weights = list(net.parameters())
    rate = 3e-3 if variant.adam else 0.01
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(weights, rate) if variant.adam else torch.optim.SGD(weights, rate, momentum=0.9)
    )
    rng, seen = np.random.default_rng(seed), list[tuple[float, float]]()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / max(1.0, _WARMUP * steps))
        rows = rng.integers(0, len(train.boxes), _BATCH).tolist()
        targets = collect_targets(anchors, [train.boxes[k] for k in rows], [matches[k] for k in rows])
        logits, deltas = net(served.normalize(torch.from_numpy(train.pixels[rows])))
        given = served.get_buffer("anchors")
        classes, places = detection_losses(logits, deltas, targets, given, variant.loss, "giou")
        seen.append(learn(optimizer, classes + _BOX_WEIGHT * places, weights, _CLIP if variant.adam else math.inf))
        if not all(map(math.isfinite, seen[-1])):
            return Outcome(*seen[0], math.nan, 0.0)
    return Outcome(*seen[0], seen[-1][0], measure(served, val))


def forget_prior(net: nn.Module) -> None:
    """Every class starts at probability .5, as it would without the article's bias."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("cls_logits.bias"):
                parameter.zero_()


def learn(
    optimizer: torch.optim.Optimizer, loss: Tensor, weights: Sequence[nn.Parameter], longest: float
) -> tuple[float, float]:
    """One step; the loss and the norm of its gradient before it was clipped to `longest`."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = float(nn.utils.clip_grad_norm_(weights, longest))
    if math.isfinite(norm):
        optimizer.step()
    return float(loss.detach()), norm


def measure(served: ServedDetector, val: Scenes) -> float:
    """AP50 on scenes."""
    served.eval()
    found = list[Detections]()
    with torch.inference_mode():
        for start in range(0, len(val.boxes), _BATCH):
            _, _, *candidates = served(torch.from_numpy(val.pixels[start : start + _BATCH]))
            boxes, scores, labels = (each.numpy() for each in candidates)
            if not np.isfinite(scores).all():
                return 0.0
            # From .001 on: what has hardly been trained finds little with confidence.
            found += [choose_boxes(*image, least=1e-3) for image in zip(boxes, scores, labels, strict=True)]
    return measure_boxes(val.boxes, found, val.labels).ap50 or 0.0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InvalidInput as error:
        sys.exit(f"prior_claim: {error}")
