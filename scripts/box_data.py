"""Pictures with boxes, as every reader gives them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.boxes import BoxLabels
from models.image import read_orientation
from scripts.box_tables import Box, turn_back
from scripts.readers import Skipped, file_digest


@dataclass(frozen=True, eq=False)
class BoxSample:
    """One picture and its boxes; equal only to itself.

    Attributes:
        path: where the file is.
        boxes: pixels of the upright picture, all within it and of positive area; none: a picture without objects.
        origin: where it came from, for messages: "instances.json: image 7" or "labels/x.txt".
        width: of the upright picture, pixels.
        height: of the upright picture, pixels.
        split: "train", "val", "test", or None where the data does not say.
        group: samples of one group must not be on both sides of a split.
        image_id: the picture's id in COCO's file, else None.
    """

    path: Path
    boxes: BoxLabels
    origin: str
    width: int
    height: int
    split: str | None = None
    group: str | None = None
    image_id: int | str | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """The class of each box that counts; a class comes as often as it has boxes."""
        return tuple(self.boxes.labels[~self.boxes.ignored].tolist())


@dataclass(frozen=True, eq=False)
class BoxDataSet:
    """Samples whose pictures all decode.

    Attributes:
        root: the folder that contains every picture.
        labels: class names: COCO's by category id, YOLO's as numbered, else sorted.
        samples: in the order of the source.
        skipped: pictures that were left out, and why.
        dropped: boxes that were left out, and why.
        clipped: boxes that reached beyond their picture and were cut at its edge.
    """

    root: Path
    labels: tuple[str, ...]
    samples: tuple[BoxSample, ...]
    skipped: tuple[Skipped, ...] = ()
    dropped: tuple[Skipped, ...] = ()
    clipped: int = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Boxes per class, (K,) int64; ignored ones do not count."""
        flat = [k for sample in self.samples for k in sample.classes]
        return np.bincount(np.array(flat, np.int64), minlength=len(self.labels)).astype(np.int64)

    @property
    def left_out(self) -> tuple[Skipped, ...]:
        """Pictures and boxes."""
        return *self.skipped, *self.dropped

    @property
    def ignored(self) -> int:
        """Ignore regions: crowds and difficult objects."""
        return sum(int(sample.boxes.ignored.sum()) for sample in self.samples)

    def relative(self, sample: BoxSample) -> str:
        """The sample's path from the root, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()

    def fingerprint(self) -> str:
        """SHA-256 over class names and every sample's relative path, boxes and content, whatever their order."""
        lines = sorted(
            json.dumps([self.relative(sample), self._described(sample.boxes), file_digest(sample.path)])
            for sample in self.samples
        )
        return hashlib.sha256("\n".join([json.dumps(["detection", self.labels]), *lines]).encode()).hexdigest()

    def _described(self, boxes: BoxLabels) -> list[list[object]]:
        rows = zip(boxes.xyxy.tolist(), boxes.labels.tolist(), boxes.ignored.tolist(), strict=True)
        return sorted([[box, self.labels[label], ignored] for box, label, ignored in rows], key=json.dumps)


def as_stored(box: Box, sample: BoxSample, size: tuple[object, object]) -> Box:
    """A box of the upright picture as its annotations have it, which may be of the file as it is stored.

    Args:
        box: pixels of the upright picture.
        sample: the picture.
        size: (width, height) that the annotations say it has.
    """
    if size == (sample.width, sample.height) or size != (sample.height, sample.width):
        return box
    return turn_back(box, read_orientation(sample.path.read_bytes()), sample.width, sample.height)
