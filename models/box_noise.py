"""Wrong boxes on purpose: given boxes dropped, moved, called something else, or drawn where nothing is.

What a detector's calibrator is fitted on at export, and what benchmarks look for. Injected errors, not people's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from models.box_causes import BADLY_LOCATED, NONE, SPURIOUS, SWAPPED
from models.boxes import BoxLabels, Floats, Indices, touches_any
from models.errors import InvalidInput

Way = Literal["any", "moved", "resized", "side", "sides"]
"""How a box comes to lie badly: moved and resized at once, one of the two, or with one side or all of them off."""
WAYS: tuple[Way, ...] = get_args(Way)
_TRIES = 50
_HALVINGS = 55
_FURTHEST = 64.0


@dataclass(frozen=True)
class BoxNoise:
    """How boxes are spoilt. A box suffers one thing at most; crowds and ignore regions suffer nothing.

    Attributes:
        drop: share of the boxes that are left out.
        shift: share that are moved and resized.
        swap: share that get another class; nothing happens where there is but one.
        invent: boxes added where nothing is, per given box (per image that has none: its chance of one).
        shift_iou: a moved box's IoU with what it was: evenly between these two.
        ways: how boxes are moved, each as often as the others.
        confusion: (K, K), row j: half of the swaps of class j go where this says (its diagonal does not count), the
            other half anywhere; None: all anywhere.

    Raises:
        InvalidInput: a rate outside [0, 1], drop + shift + swap above 1, or IoUs that are not 0 < low <= high < 1.
    """

    drop: float = 0.0
    shift: float = 0.0
    swap: float = 0.0
    invent: float = 0.0
    shift_iou: tuple[float, float] = (0.3, 0.6)
    ways: tuple[Way, ...] = ("any",)
    confusion: Floats | None = None

    def __post_init__(self) -> None:
        for field in fields(self)[:4]:
            rate = getattr(self, field.name)
            if not 0.0 <= rate <= 1.0:
                raise InvalidInput(f"{field.name} must lie in [0, 1] (it is {rate})")
        if self.drop + self.shift + self.swap > 1.0 + 1e-9:
            raise InvalidInput("drop, shift and swap together must not exceed 1")
        low, high = self.shift_iou
        if not 0.0 < low <= high < 1.0:
            raise InvalidInput(f"shift_iou must be two rising numbers between 0 and 1 (it is {low}, {high})")


@dataclass(frozen=True)
class Spoilt:
    """Boxes after the noise, and what was done.

    Attributes:
        labels: the M boxes that are given now: the kept ones in their order, then the invented.
        causes: (M,) int64, what is wrong with each, index into models.box_causes.CAUSES.
        origin: (M,) int64, which of the old boxes it was; -1 where invented.
        dropped: (D,) int64, which of the old boxes are missing.
    """

    labels: BoxLabels
    causes: Indices
    origin: Indices
    dropped: Indices


def spoil_boxes(
    labels: BoxLabels, size: tuple[int, int], classes: int, noise: BoxNoise, rng: np.random.Generator
) -> Spoilt:
    """Spoils the boxes of one image.

    Args:
        labels: the boxes, taken to be right.
        size: (width, height) of the picture, pixels; moved and invented boxes stay within it.
        classes: K.
        noise: what to do how often.
        rng: the only source of chance: the same state, the same result.
    """
    fate = rng.random(len(labels))
    fate[labels.ignored] = 1.0
    ends = np.cumsum([noise.drop, noise.shift, noise.swap])
    dropped, shifted = fate < ends[0], (fate >= ends[0]) & (fate < ends[1])
    swapped = (fate >= ends[1]) & (fate < ends[2]) & (classes > 1)
    xyxy, names = np.array(labels.xyxy, np.float64), np.array(labels.labels, np.int64)
    for k in np.flatnonzero(shifted):
        way = noise.ways[rng.integers(len(noise.ways))]
        xyxy[k] = move_box(xyxy[k], rng.uniform(*noise.shift_iou), size, rng, way)
    for k in np.flatnonzero(swapped):
        names[k] = rng.choice(classes, p=_swap_chances(int(names[k]), classes, noise.confusion))
    causes = np.select([shifted, swapped], [BADLY_LOCATED, SWAPPED], NONE)
    kept = np.flatnonzero(~dropped)
    added = _invented(labels, size, noise.invent, rng)
    new = BoxLabels(
        np.concatenate([xyxy[kept], added]),
        np.concatenate([names[kept], rng.integers(0, classes, len(added))]),
        np.concatenate([labels.ignored[kept], np.zeros(len(added), bool)]),
        (*(labels.ids[k] for k in kept), *(None for _ in added)),
    )
    return Spoilt(
        new,
        np.concatenate([causes[kept], np.full(len(added), SPURIOUS)]),
        np.concatenate([kept, np.full(len(added), -1)]),
        np.flatnonzero(dropped),
    )


def move_box(box: Floats, iou: float, size: tuple[int, int], rng: np.random.Generator, way: Way = "any") -> Floats:
    """The box (4,) drawn badly at random until it overlaps itself by an IoU in (0, 1).

    It stays as far within the picture as it was; a box that has no room to move shrinks.

    Args:
        box: (4,), pixels.
        iou: wanted, within 1e-6; .05 or more.
        size: (width, height) of the picture.
        rng: chance.
        way: how.
    """
    limits = np.concatenate([np.minimum(box[:2], 0.0), np.maximum(box[2:], size)])
    for _ in range(_TRIES):
        found = _gone(box, iou, _start(box, way, rng))
        if (found[:2] >= limits[:2]).all() and (found[2:] <= limits[2:]).all():
            return found
    return _gone(box, iou, _transformed(box, np.zeros(2), np.array([-1.0, -1.0])))


def _start(box: Floats, way: Way, rng: np.random.Generator) -> Callable[[float], Floats]:
    """The box (4,) by how far it has gone, in a direction drawn at random."""
    sides = np.tile(box[2:] - box[:2], 2)
    if way == "side":
        step = np.zeros(4)
        step[rng.integers(4)] = rng.choice([-1.0, 1.0])
        return lambda distance: box + step * sides * distance
    if way == "sides":
        steps = rng.normal(size=4)
        return lambda distance: box + steps * sides * distance
    angle = rng.uniform(0.0, 2.0 * math.pi)
    heading = np.array([math.cos(angle), math.sin(angle)])
    if way == "resized":
        return _transformed(box, np.zeros(2), heading)
    return _transformed(box, heading, rng.uniform(-0.7, 0.7, 2) if way == "any" else np.zeros(2))


def _transformed(box: Floats, way: Floats, growth: Floats) -> Callable[[float], Floats]:
    """The box by the distance it has gone along a way (in sides), with log-growth of its sides."""
    centre, sides = (box[:2] + box[2:]) / 2.0, box[2:] - box[:2]

    def at(distance: float) -> Floats:
        half = sides * np.exp(growth * distance) / 2.0
        middle = centre + way * sides * distance
        return np.concatenate([middle - half, middle + half])

    return at


def _gone(box: Floats, iou: float, at: Callable[[float], Floats]) -> Floats:
    """The box gone so far that its IoU with itself is as wanted."""
    near, far, given = 0.0, _FURTHEST, box.tolist()
    for _ in range(_HALVINGS):
        middle = (near + far) / 2.0
        near, far = (middle, far) if _iou(given, at(middle).tolist()) > iou else (near, middle)
    return at(far)


def _iou(first: list[float], second: list[float]) -> float:
    """As `models.boxes.box_iou` says of one pair, for which numpy takes many times as long."""
    x1, y1, x2, y2 = first
    left, top, right, bottom = second
    common = max(0.0, min(x2, right) - max(x1, left)) * max(0.0, min(y2, bottom) - max(y1, top))
    own = max(0.0, x2 - x1) * max(0.0, y2 - y1)
    union = own + max(0.0, right - left) * max(0.0, bottom - top) - common
    return common / union if union > 0.0 else 0.0


def _swap_chances(given: int, classes: int, confusion: Floats | None) -> Floats:
    others = np.arange(classes) != given
    evenly = others / others.sum()
    towards = evenly * 0.0 if confusion is None else np.asarray(confusion[given], np.float64) * others
    total = float(towards.sum())
    return np.asarray(evenly if total <= 0.0 else (evenly + towards / total) / 2.0)


def _invented(labels: BoxLabels, size: tuple[int, int], rate: float, rng: np.random.Generator) -> Floats:
    """Boxes (I, 4) of the sizes of the given ones that touch none of them, nor each other."""
    real = labels.xyxy[~labels.ignored]
    taken, found = np.asarray(labels.xyxy, np.float64), list[Floats]()
    for _ in range(rng.binomial(max(1, len(real)), rate)):
        for _ in range(_TRIES):
            sides = _some_sides(real, size, rng)
            corner = rng.uniform(0.0, 1.0, 2) * (np.asarray(size) - sides)
            box = np.concatenate([corner, corner + sides])
            if not touches_any(box, taken):
                found.append(box)
                taken = np.concatenate([taken, box[None]])
                break
    return np.reshape(found, (-1, 4)).astype(np.float64)


def _some_sides(real: Floats, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    if not len(real):
        return np.asarray(np.asarray(size, np.float64) * rng.uniform(0.1, 0.4, 2))
    box = real[rng.integers(len(real))]
    sides = (box[2:] - box[:2]) * rng.uniform(0.8, 1.25, 2)
    return np.asarray(np.minimum(sides, np.asarray(size, np.float64)))
