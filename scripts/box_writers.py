"""Annotations of boxes written anew with some boxes changed: what does not change stays as it is.

A format is a function `(source, data, edits, out)` and a line in BOX_WRITERS; it writes all but the pictures.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.errors import InvalidInput
from models.image import read_orientation
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_decisions import BoxEdits, Drawn
from scripts.box_tables import Box, turn_box
from scripts.folders import walk

_BACK = {5: 5, 6: 8, 7: 7, 8: 6}


def write_coco(source: Path, data: BoxDataSet, edits: Mapping[str, BoxEdits], out: Path) -> None:
    """COCO's JSON; every key that is not concerned is kept, ids too. New boxes get the next free id.

    A moved box gets a new area, but where it has a segmentation, whose area that is.
    """
    document = json.loads(source.read_text(encoding="utf-8-sig"))
    classes = {row["name"].strip(): row["id"] for row in document["categories"]}
    pictures = {row["id"]: row for row in document["images"]}
    samples = {sample.image_id: sample for sample in data.samples if data.relative(sample) in edits}
    mine = {key: edits[data.relative(sample)] for key, sample in samples.items()}
    rows = list[dict[str, Any]]()
    for row in document.get("annotations", []):
        key = row.get("image_id")
        if key in mine:
            edit = mine[key]
            if edit.dropped or row.get("id") in edit.removed:
                continue
            drawn = edit.changed.get(row["id"]) if row.get("id") is not None else None
            if drawn is not None:
                _redraw(row, drawn, samples[key], pictures[key], classes)
        rows.append(row)
    number = max((row["id"] for row in rows if isinstance(row.get("id"), int)), default=0)
    for key, edit in mine.items():
        for drawn in edit.added:
            number += 1
            fresh: dict[str, Any] = {"id": number, "image_id": key, "iscrowd": 0}
            _redraw(fresh, drawn, samples[key], pictures[key], classes)
            rows.append(fresh)
    document["annotations"] = rows
    gone = {key for key, edit in mine.items() if edit.dropped}
    document["images"] = [row for row in document["images"] if row["id"] not in gone]
    (out / source.name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def write_yolo(source: Path, data: BoxDataSet, edits: Mapping[str, BoxEdits], out: Path) -> None:
    """YOLO's text files; lines that do not change stay as they are, byte for byte."""
    changed = {sample.origin: (sample, edits[data.relative(sample)]) for sample in data.samples
               if data.relative(sample) in edits}  # fmt: skip
    gone = {sample.path for sample, edit in changed.values() if edit.dropped}
    labels = {sample.origin for sample in data.samples}
    for file in walk(source):
        name = file.relative_to(source).as_posix()
        if file.suffix.lower() not in (".txt", ".yaml", ".yml") or name in changed:
            continue
        content = file.read_bytes()
        if file.suffix.lower() == ".txt" and name not in labels and gone:
            content = b"".join(line for line in content.splitlines(keepends=True) if not _lists(line, source, gone))
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    for name, (sample, edit) in changed.items():
        if not edit.dropped:
            old = source / name
            text = old.read_bytes().decode("utf-8-sig") if old.is_file() else ""
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(_edit_lines(text, edit, sample, data).encode())


BOX_WRITERS: dict[str, Callable[[Path, BoxDataSet, Mapping[str, BoxEdits], Path], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
}


def choose_writer(kind: str | None) -> Callable[[Path, BoxDataSet, Mapping[str, BoxEdits], Path], None]:
    """The writer of a format.

    Raises:
        InvalidInput: the format is only read.
    """
    if kind not in BOX_WRITERS:
        raise InvalidInput(f"boxes are written back as {', '.join(BOX_WRITERS)}, not yet as {kind}")
    return BOX_WRITERS[kind]


def _redraw(
    row: dict[str, Any], drawn: Drawn, sample: BoxSample, picture: Mapping[str, Any], classes: Mapping[str, int | str]
) -> None:  # fmt: skip
    if drawn.label is not None:
        row["category_id"] = classes[drawn.label]
    if drawn.xyxy is not None:
        x1, y1, x2, y2 = _as_stored(drawn.xyxy, sample, (picture.get("width"), picture.get("height")))
        row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        if not row.get("segmentation"):
            row["area"] = (x2 - x1) * (y2 - y1)


def _as_stored(box: Box, sample: BoxSample, size: tuple[object, object]) -> Box:
    """A box of the upright picture as the annotations have it: those of a turned file may be of the file as stored."""
    if size == (sample.width, sample.height) or size != (sample.height, sample.width):
        return box
    return turn_box(box, _BACK[read_orientation(sample.path.read_bytes())], sample.width, sample.height)


def _lists(line: bytes, source: Path, gone: set[Path]) -> bool:
    """Whether a line of a list of pictures names one that is gone."""
    named = line.decode("utf-8", "replace").strip()
    return bool(named) and (source / named).resolve() in {path.resolve() for path in gone}


def _edit_lines(text: str, edit: BoxEdits, sample: BoxSample, data: BoxDataSet) -> str:
    lines = list[str]()
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if number not in edit.removed:
            drawn = edit.changed.get(number)
            ending = line[len(line.rstrip("\r\n")) :]
            lines.append(line if drawn is None else _yolo_line(line.split(), drawn, sample, data) + ending)
    if edit.added and lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += "\n"
    return "".join(lines) + "".join(_yolo_line([""] * 5, drawn, sample, data) + "\n" for drawn in edit.added)


def _yolo_line(fields: list[str], drawn: Drawn, sample: BoxSample, data: BoxDataSet) -> str:
    label, *corners = fields
    if drawn.label is not None:
        label = str(data.labels.index(drawn.label))
    if drawn.xyxy is not None:
        x1, y1, x2, y2 = drawn.xyxy
        sides = (sample.width, sample.height) * 2
        shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        corners = [f"{value / side:.8f}" for value, side in zip(shares, sides, strict=True)]
    return " ".join([label, *corners])
