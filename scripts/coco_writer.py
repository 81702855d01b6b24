"""COCO's JSON written anew with some boxes changed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.box_data import BoxDataSet, BoxSample, as_stored
from scripts.box_decisions import BoxEdits, Drawn


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


def _redraw(
    row: dict[str, Any], drawn: Drawn, sample: BoxSample, picture: Mapping[str, Any], classes: Mapping[str, int | str]
) -> None:  # fmt: skip
    if drawn.label is not None:
        row["category_id"] = classes[drawn.label]
    if drawn.xyxy is not None:
        x1, y1, x2, y2 = as_stored(drawn.xyxy, sample, (picture.get("width"), picture.get("height")))
        row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        if not row.get("segmentation"):
            row["area"] = (x2 - x1) * (y2 - y1)
