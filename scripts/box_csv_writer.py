"""CSV tables of boxes written anew with some boxes changed; rows that do not change stay as they are, byte for byte."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.cells import neutralize
from scripts.box_data import BoxDataSet
from scripts.box_decisions import BoxEdits, Drawn
from scripts.box_table_csv import ROLES
from scripts.rewrite import csv_records, format_record
from scripts.tables import Columns, find_columns, sniff_delimiter

_CORNERS = ("x1", "y1", "x2", "y2")
_DIGITS = 4


@dataclass(frozen=True)
class _Record:
    """One row: the line on which it starts, its text, and its cells."""

    line: int
    raw: str
    fields: list[str]


def write_box_csv(source: Path, data: BoxDataSet, edits: Mapping[str, BoxEdits], out: Path) -> None:
    """The table. A picture whose boxes are all removed keeps one row, without a box; new boxes follow the others."""
    text = source.read_bytes().decode("utf-8")
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    delimiter = sniff_delimiter(text.removeprefix(mark))
    header, *rows = [_Record(*record) for record in csv_records(text.removeprefix(mark), delimiter) if record[2]]
    names = [name.strip().lower() for name in header.fields]
    place = {role: names.index(column) for role, column in find_columns(names, Columns({}), source.name, ROLES).items()}
    first = {int(sample.origin.rpartition(":")[2]): edits.get(data.relative(sample)) for sample in data.samples}
    pictures = {row.fields[place["image"]].strip(): first[row.line] for row in rows if row.line in first}
    written, end = [mark + header.raw], "\r\n" if header.raw.endswith("\r\n") else "\n"
    groups = dict[str, list[_Record]]()
    for row in rows:
        groups.setdefault(row.fields[place["image"]].strip(), []).append(row)
    last = {group[-1].line: name for name, group in groups.items()}
    for row in rows:
        name = row.fields[place["image"]].strip()
        edit = pictures.get(name) or BoxEdits()
        if not edit.dropped:
            written += _edited(row, edit, place, delimiter)
            if last.get(row.line) == name:
                written += _ending(groups[name], edit, place, delimiter, end)
    (out / source.name).write_bytes("".join(written).encode())


def _edited(row: _Record, edit: BoxEdits, place: Mapping[str, int], delimiter: str) -> list[str]:
    if row.line in edit.removed:
        return []
    drawn = edit.changed.get(row.line)
    return [row.raw if drawn is None else _format(row, drawn, place, delimiter)]


def _ending(group: list[_Record], edit: BoxEdits, place: Mapping[str, int], delimiter: str, end: str) -> list[str]:
    """The new boxes of a picture; a row without a box where otherwise none would be left."""
    model = _Record(0, end, group[0].fields)
    if edit.added:
        unended = group[-1].line not in edit.removed and not group[-1].raw.endswith("\n")
        return [*([end] if unended else []), *(_format(model, drawn, place, delimiter) for drawn in edit.added)]
    if not all(row.line in edit.removed for row in group):
        return []
    bare = [*model.fields]
    for role in (*_CORNERS, "label"):
        bare[place[role]] = ""
    return [format_record(bare, delimiter, end)]


def _format(row: _Record, drawn: Drawn, place: Mapping[str, int], delimiter: str) -> str:
    fields = [*row.fields]
    if drawn.label is not None:
        fields[place["label"]] = neutralize(drawn.label)
    if drawn.xyxy is not None:
        for role, value in zip(_CORNERS, drawn.xyxy, strict=True):
            fields[place[role]] = f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return format_record(fields, delimiter, row.raw)
