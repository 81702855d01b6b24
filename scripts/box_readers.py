"""Data sets of boxes, read and checked: COCO, YOLO, Pascal VOC, CSV.

A format is a function `(path, images) -> BoxTable` and a line in BOX_READERS. What a format yields is checked as text;
this module decodes every picture, checks every box against its size, and lists all that is wrong with its origin.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from models.boxes import BoxLabels
from models.errors import InvalidInput
from models.image import decode_image, read_orientation
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_table_csv import has_box_columns, read_box_csv
from scripts.box_tables import Box, BoxTable, RawBox, RawImage, clip_box, turn_box
from scripts.coco import read_coco
from scripts.messages import printable
from scripts.pools import map_ahead
from scripts.readers import OnBadImage, Skipped, find_file, sort_labels
from scripts.tables import SPLITS, Problems
from scripts.voc import read_voc
from scripts.yolo import CONFIGS, read_yolo

OnBadBox = Literal["fail", "drop"]
_YOLO = ("images", "labels")


@dataclass(frozen=True)
class _Seen:
    """A picture that decodes: its upright size, and how boxes of the stored file have to be turned (1: not)."""

    path: Path
    width: int
    height: int
    turn: int


BOX_READERS: dict[str, Callable[[Path, Path | None], BoxTable]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "csv": read_box_csv,
}


def read_boxes(
    path: Path,
    *,
    labels: Sequence[str] | None = None,
    images: Path | None = None,
    on_bad_image: OnBadImage = "fail",
    on_bad_box: OnBadBox = "fail",
    progress: bool = True,
) -> BoxDataSet:
    """Reads and checks a data set of boxes; the format follows from the path.

    Boxes are pixels of the upright picture. Where EXIF turns a picture, boxes are taken to be of the upright one, as
    labelling tools show it; but where the width and height that the data set states are those of the stored file and
    not of the upright picture, boxes are turned along. Neither size: the picture is refused.

    Args:
        path: a COCO .json; a folder of YOLO's or of VOC's layout; a .csv with columns for the corners.
        labels: the only class names allowed, in this order; without it: those of the data set.
        images: the folder of the pictures, where it is not beside the annotations.
        on_bad_image: a picture that is missing, does not decode, or has another size than stated ends the reading, or
            is left out.
        on_bad_box: a box that cannot be used ends the reading, or is left out.
        progress: show a bar on stderr while pictures are decoded, if that is a terminal.

    Returns:
        The data set, every picture of which was decoded once.

    Raises:
        InvalidInput: anything wrong: the first ten problems by file and annotation, and how many there are.
    """
    path = Path(os.path.abspath(path))
    kind = infer_box_format(path)
    if kind is None:
        raise InvalidInput(f"{path}: holds no boxes; known: {', '.join(BOX_READERS)}")
    table = BOX_READERS[kind](path, None if images is None else Path(os.path.abspath(images)))
    if not table.images:
        raise InvalidInput(f"{path}: no pictures")
    names = _choose_labels(table, labels, path)
    seen, skipped = _look(table, on_bad_image, path, progress)
    index = {name: k for k, name in enumerate(names)}
    dropped, samples, clipped = list(table.faults), list[BoxSample](), 0
    for image, picture in seen:
        sample, cut = _sample(image, picture, index, table.shares, dropped)
        samples.append(sample)
        clipped += cut
    if on_bad_box == "fail":
        _refuse(dropped, path.name)
    if not any(sample.classes for sample in samples):
        raise InvalidInput(f"{path}: no picture has a box that can be used (ignore regions do not count)")
    return BoxDataSet(table.root, names, tuple(samples), (*table.skipped, *skipped), tuple(dropped), clipped)


def infer_box_format(path: Path) -> str | None:
    """The BOX_READERS key for a path, or None where it holds no boxes.

    Raises:
        InvalidInput: there is nothing at the path.
    """
    if not path.exists():
        raise InvalidInput(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_file():
        table = suffix in (".csv", ".tsv") and has_box_columns(path)
        return "coco" if suffix == ".json" else "csv" if table else None
    if any((path / name).is_file() for name in CONFIGS) or all((path / name).is_dir() for name in _YOLO):
        return "yolo"
    folders = [path, path / "Annotations", *(path / name for name in SPLITS)]
    return "voc" if any(next(folder.glob("*.xml"), None) for folder in folders) else None


def is_detection(path: Path) -> bool:
    """Whether a path holds boxes, not labels of whole pictures."""
    return infer_box_format(path) is not None


def _choose_labels(table: BoxTable, given: Sequence[str] | None, path: Path) -> tuple[str, ...]:
    if given is not None:
        if not given or len(set(given)) != len(given) or not all(given):
            raise InvalidInput("the labels to use must be different and not empty")
        return tuple(given)
    found = table.labels or sort_labels({box.label for image in table.images for box in image.boxes})
    if not found:
        raise InvalidInput(f"{path}: no box has a label")
    for name in found:
        if not name.isprintable():
            raise InvalidInput(
                f"{path.name}: the class name {printable(name)[:60]} has characters that cannot be shown"
            )
    return found


def _look(
    table: BoxTable, on_bad_image: OnBadImage, source: Path, progress: bool
) -> tuple[list[tuple[RawImage, _Seen]], list[Skipped]]:
    """Finds and decodes every picture."""
    problems, good, skipped = Problems(source.name), list[tuple[RawImage, _Seen]](), list[Skipped]()
    twice, first = Problems(source.name), dict[Path, str]()
    bar = tqdm(total=len(table.images), desc="checking images", unit=" images", disable=None if progress else True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = map_ahead(pool, lambda one: _see(one, table), table.images)
        for image, found in zip(table.images, seen, strict=True):
            bar.update()
            if isinstance(found, InvalidInput):
                skipped.append(Skipped(image.origin, str(found)))
                problems.add(image.origin, str(found))
                continue
            if found.path in first:
                twice.add(image.origin, f"'{image.file}' is already in {first[found.path]}")
            first[found.path] = image.origin
            good.append((image, found))
    twice.stop_if_any()
    if on_bad_image == "fail":
        problems.stop_if_any()
    if not good:
        raise InvalidInput(f"{source}: none of the {len(skipped)} images can be read; the first: {problems.found[0]}")
    return good, skipped


def _see(image: RawImage, table: BoxTable) -> _Seen | InvalidInput:
    try:
        file = _find(image.file, table.folders)
    except InvalidInput as error:
        return error
    except OSError as error:  # such as a name that is too long for a file
        return InvalidInput(f"{image.file[:60]}...: {error.strerror or error}")
    try:
        data = file.read_bytes()
        height, width = decode_image(data).shape[:2]
        if image.size in (None, (width, height)):
            return _Seen(file, width, height, 1)
        turn = read_orientation(data)
        if image.size == (height, width) and turn >= 5:
            return _Seen(file, width, height, turn)
        stated = f"{image.size[0]} x {image.size[1]}" if image.size else ""
        return InvalidInput(f"{file.name}: the picture is {width} x {height}, not {stated} as stated")
    except InvalidInput as error:
        return InvalidInput(f"{image.file}: {error}")
    except OSError as error:
        return InvalidInput(f"{image.file}: {error.strerror or error}")


def _find(written: str, folders: Sequence[Path]) -> Path:
    for folder in folders[:-1]:
        try:
            return find_file(folder, written)
        except InvalidInput:
            continue
    return find_file(folders[-1], written)


def _sample(
    image: RawImage, picture: _Seen, index: Mapping[str, int], shares: bool, faults: list[Skipped]
) -> tuple[BoxSample, int]:  # fmt: skip
    """A sample of the boxes that can be used, and how many of them were cut; the others go to `faults`."""
    kept, boxes, clipped = list[RawBox](), list[Box](), 0
    for raw in image.boxes:
        try:
            if raw.label not in index:
                raise InvalidInput(f"unknown label '{raw.label}'; known: {', '.join(list(index)[:10])}")
            box, cut = clip_box(_upright(raw.xyxy, picture, shares), picture.width, picture.height)
        except InvalidInput as error:
            faults.append(Skipped(raw.origin, str(error)))
            continue
        kept.append(raw)
        boxes.append(box)
        clipped += cut
    held = BoxLabels(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array([index[raw.label] for raw in kept], np.int64),
        np.array([raw.ignored for raw in kept], bool),
        tuple(raw.id for raw in kept),
    )
    where = (image.split, image.group, image.image_id)
    return BoxSample(picture.path, held, image.origin, picture.width, picture.height, *where), clipped


def _upright(box: Box, picture: _Seen, shares: bool) -> Box:
    if shares:
        x1, y1, x2, y2 = box
        return x1 * picture.width, y1 * picture.height, x2 * picture.width, y2 * picture.height
    # The stored file is as wide as the upright picture is high.
    return box if picture.turn == 1 else turn_box(box, picture.turn, picture.height, picture.width)


def _refuse(faults: Sequence[Skipped], source: str) -> None:
    problems = Problems(source)
    for fault in faults:
        problems.add(fault.origin, fault.reason)
    problems.stop_if_any()
