"""What a person decided on the boxes of an audited data set.

A CSV or JSON Lines file with the columns `image` and `box_id` (as in issues.csv), and `decision`, `label` or `box`:

    box_id of a given box      accept (the suggestion), keep, drop; or `label` and `box` (x1|y1|x2|y2), either or both
    box_id of a missing one    accept, which draws it, keep or drop, which do not; or `label` and `box`
    no box_id                  `label` and `box` draw one more; drop leaves the whole picture out
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.box_causes import CAUSES, SPURIOUS
from models.cells import restore
from models.errors import InvalidInput
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_issues import MISSING
from scripts.box_tables import Box, clip_box, read_box
from scripts.decisions import ACCEPT, DROP, KEEP, read_records
from scripts.tables import Problems

Id = int | str
Issues = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of issues.jsonl by image and box_id."""


@dataclass(frozen=True)
class Drawn:
    """A box as it should be: a class name and corners, pixels of the upright picture; None: as it was."""

    label: str | None
    xyxy: Box | None


_AS_IT_WAS = Drawn(None, None)
_SPURIOUS = CAUSES[SPURIOUS]


@dataclass(frozen=True)
class BoxEdits:
    """What is to be done with one picture.

    Attributes:
        changed: by the id of the given box what is new.
        removed: ids of given boxes.
        added: boxes with class and corners.
        dropped: the whole picture goes.
    """

    changed: dict[Id, Drawn] = field(default_factory=dict)
    removed: set[Id] = field(default_factory=set)
    added: list[Drawn] = field(default_factory=list)
    dropped: bool = False


def read_box_decisions(path: Path, data: BoxDataSet, issues: Issues) -> dict[str, BoxEdits]:
    """The edits of each picture that has some, by its path.

    Raises:
        InvalidInput: anything wrong in the file, with its line.
    """
    known = {data.relative(sample): sample for sample in data.samples}
    problems, seen, found = Problems(path.name), set[tuple[str, str]](), dict[str, BoxEdits]()
    for place, row in read_records(path):
        try:
            image, key = _text(row.get("image")), _text(row.get("box_id"))
            image = image if image in known else restore(image)
            if image not in known:
                raise InvalidInput(f"the data set has no image '{image}'")
            if key and (image, key) in seen:
                raise InvalidInput(f"a second decision on box {key} of '{image}'")
            seen.add((image, key))
            so_far = found.get(image, BoxEdits())
            found[image] = _decide(row, key, known[image], data, issues.get((image, key), {}), so_far)
        except InvalidInput as error:
            problems.add(place, str(error))
    problems.stop_if_any()
    return {image: edits for image, edits in found.items() if edits != BoxEdits()}


def _decide(
    row: Mapping[str, Any], key: str, sample: BoxSample, data: BoxDataSet, issue: Mapping[str, Any], edits: BoxEdits
) -> BoxEdits:
    """The edits of the picture with this row among them."""
    said = _text(row.get("decision")).lower()
    if said not in ("", ACCEPT, KEEP, DROP):
        raise InvalidInput(f"decision '{said}' is none of {ACCEPT}, {KEEP}, {DROP}")
    ids = {str(one): one for one in sample.boxes.ids if one is not None}
    drawn = _AS_IT_WAS if said in (KEEP, DROP) else _drawn(row, sample, data)
    if key in ids:
        if said == DROP or (said == ACCEPT and issue.get("cause") == _SPURIOUS):
            edits.removed.add(ids[key])
            return edits
        drawn = _suggested(issue) if said == ACCEPT else drawn
        if drawn != _AS_IT_WAS:
            edits.changed[ids[key]] = drawn
        return edits
    if key and issue.get("cause") != MISSING:
        raise InvalidInput(f"the picture has no box {key}")
    if said == DROP and not key:
        return replace(edits, dropped=True)
    if said == ACCEPT:
        edits.added.append(_suggested(issue))
    elif drawn != _AS_IT_WAS:
        if drawn.label is None or drawn.xyxy is None:
            raise InvalidInput("a new box needs a label and a box")
        edits.added.append(drawn)
    return edits


def _suggested(issue: Mapping[str, Any]) -> Drawn:
    label, box = issue.get("suggested_label"), issue.get("suggested_box")
    if label is None and box is None:
        raise InvalidInput("there is no suggestion to accept")
    return Drawn(label, None if box is None else read_box(box))


def _drawn(row: Mapping[str, Any], sample: BoxSample, data: BoxDataSet) -> Drawn:
    label, written = restore(_text(row.get("label"))), row.get("box")
    if label and label not in data.labels:
        raise InvalidInput(f"unknown label '{label}'")
    if written in (None, ""):
        return Drawn(label or None, None)
    corners = read_box(written if isinstance(written, list) else restore(_text(written)).split("|"))
    return Drawn(label or None, clip_box(corners, sample.width, sample.height)[0])


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
