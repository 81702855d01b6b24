"""Trees seen from above: two real, hand-labelled aerial photographs as a small data set of boxes.

They come with the Python package deepforest 2.1.0 (MIT licence, Weecology; the imagery is of the National Ecological
Observatory Network, whose own terms apply), fetched by pip with its hash and never shipped. 574 trees in the one
photograph to train on, 279 in the other, of another place, to test on: small, say so wherever a number is shown.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.boxes import BoxLabels, box_areas
from models.errors import InvalidInput
from models.fit import Pixels
from models.image import decode_image
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_readers import read_boxes
from scripts.coco import write_coco
from scripts.flags import Flags
from scripts.tiled import tile_starts
from scripts.wheels import fetch_files

TRAIN, TEST = "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop"
PACKAGE = "deepforest==2.1.0"
HASH = "sha256:8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
TILE = 256
OVERLAP = 64
_VISIBLE = 0.5


class TreeFlags(Flags):
    """Write two photographs of trees from above as a COCO folder. Example: python -m scripts.trees trees/."""

    model_config = SettingsConfigDict(cli_prog_name="python -m scripts.trees")

    out: CliPositionalArg[Path] = Field(..., description="folder to write; it must not exist")
    source: Path | None = Field(None, description="folder of the photographs, where they are here already")


def main(argv: Sequence[str]) -> int:
    """Writes the data set; prints what to train on."""
    flags = TreeFlags.parse(argv)
    with TemporaryDirectory() as folder:
        print(write_trees(flags.out, flags.source or fetch_trees(Path(folder))))
    return 0


def fetch_trees(folder: Path) -> Path:
    """Downloads the package by pip, by version and hash, and unpacks the two photographs.

    Args:
        folder: where to; it exists.

    Returns:
        The folder of the photographs.

    Raises:
        InvalidInput: pip could not fetch it.
    """
    names = [f"deepforest/data/{photo}.{suffix}" for photo in (TRAIN, TEST) for suffix in ("png", "xml")]
    return fetch_files(PACKAGE, HASH, names, folder)[0].parent


def write_trees(out: Path, source: Path) -> Path:
    """Writes the photographs as a COCO folder: train and val in tiles of the one, test the other one whole.

    The training photograph is cut into tiles of 256 x 256 that overlap by 64 pixels or more and cover all of it. Its
    rightmost 256 pixels are the validation part, and no tile of the training part reaches into them. A tree is in a
    tile if half of its box or more is, cut at the edge; of less the tile has an ignored region, so that no part of a
    tree is learnt as background.

    Args:
        out: the folder; made here.
        source: the folder of the photographs with their XML files; other files in it do not matter.

    Returns:
        OUT/annotations.json, with the three parts as splits; OUT/train.json, val.json and test.json are beside it.

    Raises:
        InvalidInput: `out` exists, or a photograph is missing.
    """
    if out.exists():
        raise InvalidInput(f"{out} exists already; choose another folder")
    photos = _read_photos(source)
    (out / "images").mkdir(parents=True)
    train, test = photos.samples
    pixels = decode_image(train.path.read_bytes())
    edge = train.width - TILE
    samples = [
        *_tiles(pixels[:, :edge], train.boxes, 0, out / "images", "train"),
        *_tiles(pixels[:, edge:], train.boxes, edge, out / "images", "val"),
    ]
    whole = out / "images" / "test.png"
    whole.write_bytes(test.path.read_bytes())
    samples.append(BoxSample(whole, test.boxes, whole.name, test.width, test.height, "test"))
    for split in ("train", "val", "test"):
        part = tuple(replace(sample, split=None) for sample in samples if sample.split == split)
        write_coco(out / f"{split}.json", BoxDataSet(out, photos.labels, part))
    write_coco(out / "annotations.json", BoxDataSet(out, photos.labels, tuple(samples)))
    return out / "annotations.json"


def cut_boxes(boxes: BoxLabels, x: int, y: int, width: int, height: int) -> BoxLabels:
    """The boxes of a tile, in its own pixels, by the rule of `write_trees`.

    Args:
        boxes: of the whole picture.
        x: of the tile's left edge, y of its upper one, pixels.
        y: see x.
        width: of the tile, pixels.
        height: of the tile, pixels.
    """
    corner, size = np.tile([x, y], 2), np.tile([width, height], 2)
    cut = np.clip(boxes.xyxy - corner, 0.0, size)
    # A sliver of less than a pixel teaches nothing, not even as a region to leave out.
    kept = np.flatnonzero((cut[:, 2:] - cut[:, :2] >= 1.0).all(axis=1))
    visible = box_areas(cut[kept]) / box_areas(boxes.xyxy[kept])
    hidden = boxes.ignored[kept] | (visible < _VISIBLE)
    return BoxLabels(cut[kept], boxes.labels[kept], hidden, tuple(boxes.ids[k] for k in kept))


def _read_photos(source: Path) -> BoxDataSet:
    """The two photographs, training first."""
    files = [source / f"{photo}.{suffix}" for photo in (TRAIN, TEST) for suffix in ("png", "xml")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InvalidInput(f"{source}: no {missing[0]}; it is in {PACKAGE}, deepforest/data/")
    with TemporaryDirectory() as folder:
        for file in files:
            (Path(folder) / file.name).symlink_to(file.resolve())
        data = read_boxes(Path(folder), progress=False)
    ordered = sorted(data.samples, key=lambda sample: sample.path.stem != TRAIN)
    return replace(data, samples=tuple(replace(one, path=source / one.path.name) for one in ordered))


def _tiles(pixels: Pixels, boxes: BoxLabels, left: int, folder: Path, split: str) -> Iterator[BoxSample]:
    """Writes the tiles of a part of the photograph that begins at `left`."""
    height, width = pixels.shape[:2]
    for y in tile_starts(height, TILE, OVERLAP):
        for x in tile_starts(width, TILE, OVERLAP):
            path = folder / f"{split}_{y:04d}_{left + x:04d}.png"
            tile = pixels[y : y + TILE, x : x + TILE]
            Image.fromarray(tile).save(path)
            high, wide = tile.shape[:2]
            yield BoxSample(path, cut_boxes(boxes, left + x, y, wide, high), path.name, wide, high, split)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InvalidInput as error:
        sys.exit(f"trees: {error}")
