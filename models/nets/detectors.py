"""The detectors by name: `--net` of a classifier names the backbone of a detector too."""

from dataclasses import dataclass

from models.detector_spec import AnchorLevel, DetectorSpec
from models.errors import InvalidInput
from models.nets.bodies import BODIES
from models.nets.norms import NORMS, freeze_norms
from models.nets.retinanet import FIRST, RetinaNet, body_outputs


@dataclass(frozen=True)
class Plan:
    """What a detector is made of, beside its backbone.

    Attributes:
        levels: of the pyramid, from stride 8 on.
        sizes: anchors of a level, as multiples of `base` and of the level's stride.
        base: size of the smallest anchor in strides.
        ratios: height over width of the anchors.
        side: of the input where the data does not say, pixels.
        width: channels of the pyramid and the heads.
        depth: convolutions of each head before its last.
        head_norm: a name in NORMS, or None.
    """

    levels: int
    sizes: tuple[float, ...]
    base: float = 4.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    side: int = 512
    width: int = 256
    depth: int = 4
    head_norm: str | None = None

    def spec(self) -> DetectorSpec:
        """The default levels and ratios; sizes are whole pixels, as torchvision's."""
        strides = [2 ** (FIRST + k) for k in range(self.levels)]
        levels = [
            AnchorLevel(stride=each, sizes=[float(int(self.base * each * size)) for size in self.sizes])
            for each in strides
        ]
        return DetectorSpec(levels=levels, ratios=list(self.ratios))


_THIRDS = (1.0, 2.0 ** (1.0 / 3.0), 2.0 ** (2.0 / 3.0))
DETECTORS: dict[str, Plan] = {
    "small": Plan(levels=2, sizes=(1.0, 2.0**0.5), base=2.5, side=128, width=64, depth=2, head_norm="group"),
    "resnet18": Plan(levels=5, sizes=_THIRDS),
    "resnet34": Plan(levels=5, sizes=_THIRDS),
    "resnet50": Plan(levels=5, sizes=_THIRDS),
    "mobilenet_v2": Plan(levels=3, sizes=(1.0, 2.0**0.5), base=2.0, side=256, width=64, depth=2, head_norm="group"),
}


def plan_of(name: str) -> Plan:
    """The plan of a detector.

    Raises:
        InvalidInput: no detector of that name.
    """
    if name not in DETECTORS:
        raise InvalidInput(f"unknown network {name!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name]


def build_detector(name: str, classes: int, spec: DetectorSpec, body_norm: str = "batch") -> RetinaNet:
    """A freshly initialised detector; every class starts at probability .01 on every anchor.

    Args:
        name: in DETECTORS.
        classes: K, 1 or more.
        spec: levels and ratios; levels of stride 8, 16, 32, ... in a row, with as many sizes each.
        body_norm: "batch", or "frozen" for published weights and small batches.

    Raises:
        InvalidInput: an unknown name, no classes, or levels that do not fit.
    """
    plan = plan_of(name)
    if classes < 1:
        raise InvalidInput(f"a detector needs at least 1 class, not {classes}")
    body = BODIES[name](body_outputs(spec))
    norm = None if plan.head_norm is None else NORMS[plan.head_norm]
    net = RetinaNet(body, spec, classes, width=plan.width, depth=plan.depth, norm=norm)
    if body_norm == "frozen":
        freeze_norms(net.backbone)
    elif body_norm != "batch":
        raise InvalidInput(f"unknown norm {body_norm!r}; known: batch, frozen")
    return net
