"""What a person decided on the labels of an audited data set: a CSV or JSON Lines file, or Label Studio's export."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.cells import restore
from models.errors import InvalidInput
from scripts.label_studio import read_export
from scripts.readers import DataSet, Sample
from scripts.tables import Problems, sniff_delimiter

KEEP, ACCEPT, DROP = "keep", "accept", "drop"
SURE = 0.85
"""From this probability on a suggestion is accepted unseen."""


@dataclass(frozen=True)
class Decision:
    """What to do with one label: new class indices, or None to drop the image."""

    classes: tuple[int, ...] | None


def accepted(data: DataSet, issues: Mapping[str, dict[str, Any]]) -> dict[str, Decision]:
    """The suggestion for every flagged label for which it is sure: a flag alone is often wrong in rare classes.

    Raises:
        InvalidInput: the audit does not say how sure it is.
    """
    flagged = {image: row for image, row in issues.items() if row["is_label_issue"]}
    if any(row.get("p_suggested") is None for row in flagged.values()):
        raise InvalidInput("the audit does not say how sure its suggestions are; run it again with this version")
    return {image: Decision(_indices(row["suggested_label"], data)) for image, row in flagged.items()
            if row["p_suggested"] >= SURE}  # fmt: skip


def read_decisions(
    path: Path, data: DataSet, issues: Mapping[str, dict[str, Any]], separator: str
) -> dict[str, Decision]:  # fmt: skip
    """The decisions of a file, by image.

    Raises:
        InvalidInput: anything wrong in it, with its line or task.
    """
    known = {data.relative(sample): sample for sample in data.samples}
    problems, found = Problems(path.name), dict[str, Decision]()
    records = read_export(path, data.labels) if path.suffix.lower() == ".json" else read_records(path)
    for place, row in records:
        image = row.get("image")
        image = restore(image) if isinstance(image, str) and image not in known else image
        try:
            if not isinstance(image, str) or image not in known:
                raise InvalidInput(f"the data set has no image '{image}'")
            if image in found:
                raise InvalidInput(f"a second decision on '{image}'")
            found[image] = _decide(row, known[image], data, issues.get(image, {}), separator)
        except InvalidInput as error:
            problems.add(place, str(error))
    problems.stop_if_any()
    return found


def _decide(
    row: Mapping[str, Any], sample: Sample, data: DataSet, issue: Mapping[str, Any], separator: str
) -> Decision:  # fmt: skip
    said, label = str(row.get("decision") or "").strip().lower(), row.get("label")
    if said == DROP:
        return Decision(None)
    if said == ACCEPT:
        suggestion = issue.get("suggested_label")
        if suggestion is None:
            raise InvalidInput("there is no suggestion to accept")
        return Decision(_indices(suggestion, data))
    if said not in ("", KEEP):
        raise InvalidInput(f"decision '{said}' is none of {ACCEPT}, {KEEP}, {DROP}")
    if said == KEEP or label in (None, ""):
        return Decision(sample.classes)
    if isinstance(label, str):
        label = restore(label)
        label = [part for part in label.split(separator) if part] if data.task == "multilabel" else label
    return Decision(_indices(label, data))


def _indices(label: object, data: DataSet) -> tuple[int, ...]:
    several = label if isinstance(label, list) else [label]
    unknown = [str(name) for name in several if str(name) not in data.labels]
    if unknown:
        raise InvalidInput(f"unknown label '{unknown[0]}'")
    if data.task != "multilabel" and len(several) != 1:
        raise InvalidInput("an image has one label here")
    return tuple(sorted(data.labels.index(str(name)) for name in several))


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or JSON Lines file with their places.

    Raises:
        InvalidInput: it cannot be read, or is no file of decisions.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            lines = enumerate(text.split("\n"), start=1)
            found = [(f"{path.name}:{k}", json.loads(line)) for k, line in lines if line.strip()]
            odd = next((place for place, row in found if not isinstance(row, dict)), None)
            if odd is not None:
                raise InvalidInput(f"{odd}: should be an object")
            return found
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=sniff_delimiter(text), strict=True)
        if "image" not in (rows.fieldnames or ()) or not {"decision", "label"} & set(rows.fieldnames or ()):
            raise InvalidInput(f"{path.name}: needs the columns image, and decision or label")
        return [(f"{path.name}:{rows.line_num}", row) for row in rows]
    except (ValueError, csv.Error) as error:
        raise InvalidInput(f"{path.name}: cannot be read: {error}") from None
