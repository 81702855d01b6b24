"""Lists of labelled images with some labels replaced: rows that do not change stay as they are, byte for byte."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from models.cells import neutralize
from scripts.tables import Columns, find_columns, sniff_delimiter

_MARK = "\ufeff"


def rewrite_table(path: Path, labels: Mapping[int, tuple[str, ...]], dropped: Set[int], separator: str) -> bytes:
    """A CSV file anew.

    Args:
        path: of the file.
        labels: new labels by the line on which a record starts, counted from 1.
        dropped: lines of records to leave out.
        separator: between several labels.
    """
    text = path.read_bytes().decode("utf-8")
    mark = _MARK if text.startswith(_MARK) else ""
    text = text.removeprefix(_MARK)
    delimiter = sniff_delimiter(text)
    out, column = [mark], -1
    for line, raw, fields in csv_records(text, delimiter):
        if column < 0 and fields:
            header = [name.strip().lower() for name in fields]
            column = header.index(find_columns(header, Columns({}), path.name)["label"])
        elif line in labels and fields:
            fields[column] = neutralize(separator.join(labels[line]))
            raw = format_record(fields, delimiter, raw)
        if line not in dropped:
            out.append(raw)
    return "".join(out).encode()


def rewrite_jsonl(path: Path, labels: Mapping[int, tuple[str, ...]], dropped: Set[int], separator: str) -> bytes:
    """A JSON Lines file anew; arguments as of `rewrite_table`. A list stays a list, a number a number."""
    text = path.read_bytes().decode("utf-8")
    mark = _MARK if text.startswith(_MARK) else ""
    lines = text.removeprefix(_MARK).split("\n")
    out = []
    for line, raw in enumerate(lines, start=1):
        if line in labels:
            cells = json.loads(raw)
            keys = {key.strip().lower(): key for key in cells}
            key = keys[find_columns(list(keys), Columns({}), path.name)["label"]]
            cells[key] = _like(cells[key], labels[line], separator)
            raw = json.dumps(cells, ensure_ascii=False) + ("\r" if raw.endswith("\r") else "")
        if line not in dropped:
            out.append(raw)
    return (mark + "\n".join(out)).encode()


def csv_records(text: str, delimiter: str) -> Iterator[tuple[int, str, list[str]]]:
    """Each record's first line, its text as it stands, and its fields."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = 0
    for fields in reader:
        yield start + 1, "".join(lines[start : reader.line_num]), fields
        start = reader.line_num


def format_record(fields: list[str], delimiter: str, raw: str) -> str:
    """A record anew, with the line ending of its old text."""
    ending = raw[len(raw.rstrip("\r\n")) :]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator="").writerow(fields)
    return buffer.getvalue() + ending


def _like(old: object, labels: tuple[str, ...], separator: str) -> object:
    if isinstance(old, list):
        return [_number(name, any(isinstance(part, int) for part in old)) for name in labels]
    return _number(separator.join(labels), isinstance(old, int))


def _number(name: str, wanted: bool) -> str | int:
    return int(name) if wanted and name.isdecimal() else name
