"""`focalserve apply` for boxes: the data set written anew with the decisions on its boxes, in the format it came in."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import InvalidInput
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_decisions import BoxEdits, read_box_decisions
from scripts.box_label_studio import read_box_export
from scripts.box_readers import infer_box_format, read_boxes
from scripts.box_writers import BOX_WRITERS
from scripts.drafts import drafted, put_file
from scripts.issues import cell

LOG = "changes.csv"
_LOG_COLUMNS = ("image", "box_id", "action", "given_label", "new_label", "given_box", "new_box")


def apply_boxes(
    audit: Path, source: Path, settings: Mapping[str, Any], decisions: Path | None, out: Path, link: bool
) -> Path:
    """Writes the new data set whole or not at all.

    Args:
        audit: the folder of the audit, for its issues.jsonl.
        source: what was audited.
        settings: of the audit: its `fingerprint`, and `images`, the folder of the pictures where that is elsewhere.
        decisions: the file of decisions; .json: Label Studio's export.
        out: the new folder.
        link: link to the pictures instead of copying them.

    Returns:
        What to read the new data set by.

    Raises:
        InvalidInput: no decisions, wrong ones, data that has changed, or `out` exists.
    """
    kind = infer_box_format(source)
    if kind is None:
        raise InvalidInput(f"{source}: holds no boxes any more")
    if decisions is None:
        raise InvalidInput("suggestions on boxes are not accepted unseen: give --decisions FILE")
    images = Path(settings["images"]) if settings.get("images") else None
    data = read_boxes(source, images=images, on_bad_image="skip", on_bad_box="drop")
    if data.fingerprint() != settings["fingerprint"]:
        raise InvalidInput(f"{source} has changed since it was audited; audit it again")
    if decisions.suffix.lower() == ".json":
        edits = read_box_export(decisions, data, settings["fingerprint"])
    else:
        edits = read_box_decisions(decisions, data, read_box_issues(audit / "issues.jsonl"))
    base = source if source.is_dir() else source.parent
    with drafted(out) as draft:
        pictures = draft if data.root == base.absolute() else draft / "images"
        for sample in data.samples:
            if not edits.get(data.relative(sample), BoxEdits()).dropped:
                put_file(sample.path, pictures / data.relative(sample), link)
        BOX_WRITERS[kind](source, data, edits, draft)
        with (draft / LOG).open("w", encoding="utf-8", newline="") as file:
            log = csv.writer(file)
            log.writerow(_LOG_COLUMNS)
            rows = [[cell(value) for value in row] for row in list_changes(data, edits)]
            log.writerows(rows)
    print(f"{len(rows)} changes to {len(edits)} of {len(data.samples)} pictures", file=sys.stderr)
    if data.skipped:
        print(f"{len(data.skipped)} pictures that cannot be used were not copied", file=sys.stderr)
    return out if source.is_dir() else out / source.name


def read_box_issues(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of issues.jsonl by image and box_id; boxes without an id are left out.

    Raises:
        InvalidInput: there is no such file.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except OSError:
        raise InvalidInput(f"{path}: is missing; the audit is not complete") from None
    return {(row["image"], str(row["box_id"])): row for row in rows if row["box_id"] is not None}


def list_changes(data: BoxDataSet, edits: Mapping[str, BoxEdits]) -> Iterator[Sequence[object]]:
    """One row of changes.csv for each change."""
    for sample in data.samples:
        image = data.relative(sample)
        edit = edits.get(image, BoxEdits())
        if edit.dropped:
            yield (image, None, "picture dropped", None, None, None, None)
            continue
        for key in sorted(edit.removed, key=str):
            label, box = _given(sample, key, data)
            yield (image, key, "removed", label, None, box, None)
        for key, drawn in edit.changed.items():
            label, box = _given(sample, key, data)
            what = (("relabelled", drawn.label), ("moved", drawn.xyxy))
            action = " and ".join(word for word, new in what if new is not None)
            yield (image, key, action, label, drawn.label, box, None if drawn.xyxy is None else list(drawn.xyxy))
        for drawn in edit.added:
            yield (image, None, "added", None, drawn.label, None, None if drawn.xyxy is None else list(drawn.xyxy))


def _given(sample: BoxSample, key: int | str, data: BoxDataSet) -> tuple[str, list[float]]:
    place = sample.boxes.ids.index(key)
    return data.labels[int(sample.boxes.labels[place])], sample.boxes.xyxy[place].round(2).tolist()
