"""Composed scenes: garments at exact places among clutter, to train a detector on and to try errors of boxes on.

Composed, not real: say so wherever a number from them is shown. A scene is a function of (items, seed, its position).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.boxes import BoxLabels, Floats, box_areas, intersections
from models.errors import InvalidInput
from models.image import Pixels
from scripts.box_data import BoxDataSet, BoxSample
from scripts.coco import write_coco
from scripts.flags import Flags
from scripts.items import Items, Part, debian_items, embedded_items, merge_items

Canvas = NDArray[np.float32]
_TRIES = 20
_GRAINS = (4, 16, 64)
_HIDDEN = 0.5
_OPAQUE = 48.0  # a garment's grey level from which it hides what is behind it
_GARMENT = 24  # its least level that is counted as garment


@dataclass(frozen=True)
class SceneSpec:
    """How scenes are made.

    Attributes:
        side: of the square scene, pixels.
        fewest: items in a scene that has any, at least.
        most: items in a scene at most; fewer where they find no place.
        smallest: longest side of an item at least, pixels.
        largest: longest side of an item at most, pixels.
        empty: share of scenes with clutter only.
        overlap: IoU of any two items' boxes stays below this, and neither covers half of the other.
    """

    side: int = 128
    fewest: int = 1
    most: int = 8
    smallest: int = 20
    largest: int = 56
    empty: float = 0.1
    overlap: float = 0.2


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes in memory.

    Attributes:
        pixels: (N, side, side, 3) uint8, grey.
        boxes: of each scene, pixels.
        labels: class names.
    """

    pixels: Pixels
    boxes: tuple[BoxLabels, ...]
    labels: tuple[str, ...]


class SceneFlags(Flags):
    """Compose scenes of garments with exact boxes. Example: python -m scripts.scenes scenes/ --train 4000."""

    model_config = SettingsConfigDict(cli_prog_name="python -m scripts.scenes")

    out: CliPositionalArg[Path] = Field(..., description="folder to write; it must not exist")
    train: Annotated[int, Field(ge=1)] = Field(4000, description="training scenes")
    val: Annotated[int, Field(ge=1)] = Field(400, description="validation scenes, from other items")
    classes: Literal["5", "10"] = Field("5", description="10, or 5: tops, trouser, dress, shoes, bag")
    items: Literal["embedded", "debian"] = Field("embedded", description="debian: its package dataset-fashion-mnist")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="another seed makes other scenes")


def main(argv: Sequence[str]) -> int:
    """Writes a data set of scenes; prints what to train on."""
    flags = SceneFlags.parse(argv)
    parts: dict[str, Scenes] = {}
    wanted: list[tuple[str, Part, int]] = [("train", "train", flags.train), ("val", "test", flags.val)]
    for name, part, count in wanted:
        items = debian_items(part) if flags.items == "debian" else embedded_items(part)
        parts[name] = compose_scenes(merge_items(items) if flags.classes == "5" else items, count, flags.seed)
    print(write_scenes(flags.out, parts))
    return 0


def compose_scenes(items: Items, count: int, seed: int, spec: SceneSpec = SceneSpec()) -> Scenes:
    """Composes scenes; every class is as frequent as every other, whatever the items.

    Args:
        items: what may be in them.
        count: of scenes.
        seed: another seed makes other scenes.
        spec: how they are made.

    Raises:
        InvalidInput: a class without items, or items that cannot fit.
    """
    holders = [np.flatnonzero(items.classes == k) for k in range(len(items.labels))]
    if not all(len(held) for held in holders):
        raise InvalidInput("there is a class without items")
    if not 4 <= spec.smallest <= spec.largest <= spec.side:
        raise InvalidInput(f"items of {spec.smallest} to {spec.largest} pixels do not fit a scene of {spec.side}")
    pixels = np.empty((count, spec.side, spec.side, 3), np.uint8)
    boxes = list[BoxLabels]()
    for position in range(count):
        rng = np.random.default_rng([seed, position])
        canvas = _clutter(items, spec, rng)
        boxes.append(_place_items(canvas, items, holders, spec, rng))
        pixels[position] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)[..., None]
    return Scenes(pixels, tuple(boxes), items.labels)


def write_scenes(out: Path, parts: Mapping[str, Scenes]) -> Path:
    """Writes OUT/images/PART_NNNNN.png, OUT/annotations.json with all parts as splits, and OUT/PART.json for each.

    Args:
        out: the folder; made here.
        parts: by the name of their split: train, val or test.

    Returns:
        OUT/annotations.json.

    Raises:
        InvalidInput: `out` exists.
    """
    if out.exists():
        raise InvalidInput(f"{out} exists already; choose another folder")
    (out / "images").mkdir(parents=True)
    everything, labels = list[BoxSample](), next(iter(parts.values())).labels
    for name, scenes in parts.items():
        paths = [out / "images" / f"{name}_{position:05d}.png" for position in range(len(scenes.boxes))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_write_png, paths, scenes.pixels))
        high, wide = scenes.pixels.shape[1:3]
        rows = zip(paths, scenes.boxes, strict=True)
        found = [BoxSample(path, boxes, path.name, wide, high) for path, boxes in rows]
        write_coco(out / f"{name}.json", BoxDataSet(out, labels, tuple(found)))
        everything += [replace(sample, split=name) for sample in found]
    write_coco(out / "annotations.json", BoxDataSet(out, labels, tuple(everything)))
    return out / "annotations.json"


def _clutter(items: Items, spec: SceneSpec, rng: np.random.Generator) -> Canvas:
    """Noise of several grains, and stretched pieces of garments, dimmer than a whole one."""
    noise = Image.new("F", (1, 1), float(rng.uniform(10.0, 60.0)))
    for grain in _GRAINS:
        finer = np.asarray(noise.resize((grain, grain), Image.Resampling.BILINEAR))
        noise = Image.fromarray(finer + rng.standard_normal((grain, grain), np.float32) * rng.uniform(4.0, 16.0))
    canvas = np.array(noise.resize((spec.side, spec.side), Image.Resampling.BILINEAR))
    for _ in range(int(rng.integers(0, 7))):
        piece = Image.fromarray(items.images[rng.integers(len(items.images))])
        left, top, wide, high = rng.integers((4, 4, 5, 5), (16, 16, 10, 10)).tolist()
        size = rng.integers(6, spec.largest, 2)
        x, y = rng.integers(0, spec.side - size + 1).tolist()
        box = (left, top, left + wide, top + high)
        patch = piece.resize((int(size[0]), int(size[1])), Image.Resampling.BILINEAR, box=box)
        _paste(canvas, np.asarray(patch), x, y, float(rng.uniform(0.3, 0.7)))
    return canvas


def _place_items(
    canvas: Canvas, items: Items, holders: Sequence[NDArray[np.intp]], spec: SceneSpec, rng: np.random.Generator
) -> BoxLabels:
    boxes, classes = np.zeros((0, 4)), list[int]()
    wanted = 0 if rng.random() < spec.empty else int(rng.integers(spec.fewest, spec.most + 1))
    for _ in range(wanted):
        k = int(rng.integers(len(holders)))
        item = items.images[holders[k][rng.integers(len(holders[k]))]]
        tight = _find_garment(item)
        longest = rng.uniform(spec.smallest, spec.largest) / max(tight[2] - tight[0], tight[3] - tight[1])
        size = np.maximum(4, np.rint([(tight[2] - tight[0]) * longest, (tight[3] - tight[1]) * longest])).astype(int)
        corners = rng.integers(0, spec.side - size + 1, (_TRIES, 2)).astype(np.float64)
        free = np.flatnonzero(_have_room(np.concatenate([corners, corners + size], axis=1), boxes, spec.overlap))
        if len(free):
            x, y = corners[free[0]].astype(int).tolist()
            wide, high = size.tolist()
            scaled = Image.fromarray(item).resize((wide, high), Image.Resampling.BILINEAR, box=tight)
            _paste(canvas, np.asarray(scaled), x, y, float(rng.uniform(0.75, 1.0)))
            boxes = np.concatenate([boxes, [[x, y, x + wide, y + high]]])
            classes.append(k)
    count = len(classes)
    return BoxLabels(boxes, np.array(classes, np.int64), np.zeros(count, bool), (None,) * count)


def _have_room(boxes: Floats, others: Floats, overlap: float) -> NDArray[np.bool_]:
    """(N,): which of the boxes (N, 4) overlap no other (M, 4) too much; no half of one may be hidden."""
    common, areas, own = intersections(boxes, others), box_areas(others)[None], box_areas(boxes)[:, None]
    limit = np.minimum(overlap * (areas + own - common), _HIDDEN * np.minimum(areas, own))
    return np.asarray((common < limit).all(axis=1))


def _find_garment(item: Pixels) -> tuple[int, int, int, int]:
    """The box that the garment fills in its picture, so that the place it is put is its box."""
    garment = item >= _GARMENT
    rows, columns = np.flatnonzero(garment.any(axis=1)), np.flatnonzero(garment.any(axis=0))
    if not len(rows):
        return 0, 0, item.shape[1], item.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _paste(canvas: Canvas, patch: Pixels, x: int, y: int, gain: float) -> None:
    under = canvas[y : y + patch.shape[0], x : x + patch.shape[1]]
    level = patch.astype(np.float32)
    cover = np.minimum(level / _OPAQUE, 1.0)
    under += cover * (level * gain - under)


def _write_png(path: Path, pixels: Pixels) -> None:
    # Uncompressed: no deflate implementation can change the bytes, so the files' hashes hold everywhere.
    Image.fromarray(pixels[..., 0]).save(path, format="PNG", compress_level=0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InvalidInput as error:
        sys.exit(f"scenes: {error}")
