"""Lists of labelled images, CSV and JSON Lines, read into rows; every complaint names file and line.

A row is text and nothing more: `scripts.readers` resolves labels, looks for the files and decodes them.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.cells import restore
from models.errors import InvalidInput
from scripts.messages import printable

ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "path", "file_name", "filename", "file", "image_path"),
    "label": ("label", "class", "category", "target", "given_label", "labels"),
    "group": ("group",),
    "split": ("split",),
}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SHOWN = 10

Cells = Mapping[str, object]
Record = tuple[str, Cells, Mapping[str, str]]  # origin, cells by column, column by role


@dataclass(frozen=True)
class Columns:
    """How to read a list.

    Attributes:
        names: role (image, label, group, split) to the column that was asked for; absent: found by its alias.
        separator: what stands between the labels of one image.
        multilabel: True or False where the task says so; None: the data says it.
    """

    names: Mapping[str, str]
    separator: str = "|"
    multilabel: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image, unchecked: `image` is the path as written, `origin` where that was."""

    image: str
    labels: tuple[str, ...]
    origin: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """All rows of a data set, the folder their paths start from, and how many files were no images."""

    root: Path
    rows: tuple[Row, ...]
    multilabel: bool = False
    ignored: int = 0


class Problems:
    """Collects what is wrong, so that one run shows all of it: the first ten and how many there are."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[str] = []

    def add(self, origin: str, reason: str) -> None:
        """Notes one problem."""
        self.found.append(printable(f"{origin}: {reason}"))

    def stop_if_any(self) -> None:
        """Raises InvalidInput with what was noted."""
        if len(self.found) == 1:
            raise InvalidInput(self.found[0])
        if self.found:
            more = len(self.found) - _SHOWN
            lines = self.found[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
            raise InvalidInput("\n  ".join([f"{len(self.found)} problems in {self.source}:", *lines]))


def read_table(path: Path, columns: Columns) -> Table:
    """Reads a CSV file with a header: comma, semicolon or tab, UTF-8 with or without a byte-order mark."""
    problems = Problems(path.name)
    lines = csv_lines(path, problems)
    first, header = next(lines, (1, []))
    problems.stop_if_any()
    names = [name.strip().lower() for name in header]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InvalidInput(f"{path.name}:{first}: the header has column '{repeated[0]}' more than once")
    found = find_columns(names, columns, f"{path.name}:{first}")
    multilabel = columns.multilabel if columns.multilabel is not None else found["label"] == "labels"

    def records() -> Iterator[Record]:
        for line, fields in lines:
            if len(fields) == len(names):
                yield f"{path.name}:{line}", dict(zip(names, fields, strict=True)), found
            else:
                problems.add(f"{path.name}:{line}", f"the row has {len(fields)} fields, the header has {len(names)}")

    return Table(path.parent, _read_rows(records(), multilabel, columns.separator, problems), multilabel)


def read_jsonl(path: Path, columns: Columns) -> Table:
    """Reads one JSON object a line; a label is text, a whole number, or a list of them (then: multilabel)."""
    problems = Problems(path.name)
    records: list[Record] = []
    for line, text in enumerate(_read_text(path).split("\n"), start=1):
        origin = f"{path.name}:{line}"
        try:
            if text.strip():
                cells = _parse_object(text)
                records.append((origin, cells, find_columns(list(cells), columns, origin)))
        except (ValueError, RecursionError) as error:
            problems.add(origin, f"not a JSON object: {error}")
        except InvalidInput as error:
            problems.found.append(str(error))
    multilabel = columns.multilabel
    if multilabel is None:
        multilabel = any(at["label"] == "labels" or isinstance(cells[at["label"]], list) for _, cells, at in records)
    return Table(path.parent, _read_rows(records, multilabel, columns.separator, problems), multilabel)


def find_columns(
    names: Sequence[str],
    columns: Columns,
    origin: str,
    roles: Mapping[str, tuple[str, ...]] = ALIASES,
    optional: Sequence[str] = ("group", "split"),
) -> dict[str, str]:
    """Finds the column of each role, by the name asked for or by alias; `names` are lower case."""
    found: dict[str, str] = {}
    for role, aliases in roles.items():
        asked = columns.names.get(role)
        candidates = [name for name in names if name in ((asked.strip().lower(),) if asked else aliases)]
        if len(candidates) > 1:
            both = " and ".join(f"'{name}'" for name in candidates)
            raise InvalidInput(f"{origin}: {both} could each be the {role} column; rename one of them")
        if not candidates and (asked or role not in optional):
            wanted = f"'{asked}'" if asked else f"for the {role} (one of {', '.join(aliases)})"
            raise InvalidInput(f"{origin}: no column {wanted}; there are: {', '.join(names) or 'none'}")
        found.update((role, name) for name in candidates)
    return found


def _read_rows(records: Iterable[Record], multilabel: bool, separator: str, problems: Problems) -> tuple[Row, ...]:
    rows: list[Row] = []
    for origin, cells, found in records:
        try:
            rows.append(_read_row(cells, found, origin, separator if multilabel else None))
        except ValueError as error:
            problems.add(origin, str(error))
    problems.stop_if_any()
    return tuple(rows)


def _read_row(cells: Cells, found: Mapping[str, str], origin: str, separator: str | None) -> Row:
    image = cells[found["image"]]
    if not isinstance(image, str) or not image.strip():
        raise ValueError(
            "the image path is empty" if image is None or isinstance(image, str) else "the image path is not text"
        )
    split = _optional(cells, found, "split")
    if split is not None and split.lower() not in SPLITS:
        raise ValueError(f"split '{split}' is none of train, val, test")
    labels = _read_labels(cells[found["label"]], separator)
    return Row(image, labels, origin, SPLITS[split.lower()] if split else None, _optional(cells, found, "group"))


def _read_labels(value: object, separator: str | None) -> tuple[str, ...]:
    if separator is None:
        if isinstance(value, list):
            raise ValueError("a list of labels; use task 'multilabel'")
        label = _as_text(value)
        if not label:
            raise ValueError("the label is empty")
        return (restore(label),)
    parts = value if isinstance(value, list) else restore(_as_text(value)).split(separator)
    labels = [restore(_as_text(part)) for part in parts]
    return tuple(dict.fromkeys(label for label in labels if label))


def _optional(cells: Cells, found: Mapping[str, str], role: str) -> str | None:
    return (_as_text(cells[found[role]]) or None) if role in found and found[role] in cells else None


def _as_text(value: object) -> str:
    if isinstance(value, bool | float | dict | list):
        raise ValueError(f"{json.dumps(value)[:40]} is neither text nor a whole number")
    return "" if value is None else str(value).strip()


def csv_lines(path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the line on which it starts."""
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sniff_delimiter(text), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        problems.add(f"{path.name}:{line}", f"not readable as CSV: {error}")


def sniff_delimiter(text: str) -> str:
    """The mark that splits the header into most known column names, then into most columns."""
    header = text.lstrip("\r\n")[:10_000].splitlines()[:1]
    known = {alias for aliases in ALIASES.values() for alias in aliases}

    def fit(mark: str) -> tuple[int, int]:
        names = next(csv.reader(header, delimiter=mark), [])
        return sum(name.strip().lower() in known for name in names), len(names)

    return max(",;\t", key=fit)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path.name}:{line}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error


def _parse_object(text: str) -> dict[str, object]:
    parsed = json.loads(text, object_pairs_hook=_unique_keys)
    if not isinstance(parsed, dict):
        raise ValueError("the line holds something else")
    return parsed


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key.strip().lower() for key, _ in pairs]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise ValueError(f"key '{repeated[0]}' is there more than once")
    return dict(zip(keys, (value for _, value in pairs), strict=True))
