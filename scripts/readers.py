"""Data sets of labelled images, read and checked: class folders, CSV, JSON Lines.

A format is a function `(path, columns) -> Table` and a line in READERS. What a format yields is text; this module
resolves labels, looks for the files, decodes every image, and lists all that is wrong with its origin.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.cells import restore
from models.errors import InvalidInput
from models.image import decode_image
from scripts.folders import read_folder
from scripts.pools import map_ahead
from scripts.tables import Columns, Problems, Row, Table, read_jsonl, read_table

Task = Literal["multiclass", "multilabel", "binary"]
OnBadImage = Literal["fail", "skip"]

_TASKS: dict[str, Task] = {"multiclass": "multiclass", "multilabel": "multilabel", "binary": "binary"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image.

    Attributes:
        file: where the image is; text, which takes a fifth of the memory of a Path.
        label: index into the data set's labels; multilabel: the indices, ascending.
        origin: where it came from, for messages: "train.csv:17" or "train/Bag/x.png".
        split: "train", "val", "test", or None where the data does not say.
        group: samples of one group must not be on both sides of a split.
    """

    file: str
    label: int | tuple[int, ...]
    origin: str
    split: str | None = None
    group: str | None = None

    @property
    def path(self) -> Path:
        """Where the image is."""
        return Path(self.file)

    @property
    def classes(self) -> tuple[int, ...]:
        """The label indices, whether one or several."""
        return (self.label,) if isinstance(self.label, int) else self.label


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, and why."""

    origin: str
    reason: str


@dataclass(frozen=True)
class DataSet:
    """Samples whose images all decode.

    Attributes:
        root: the folder that contains every image.
        task: what the labels mean; binary: index 1 is the positive class.
        labels: class names; numeric order where all are whole numbers, else the order of text.
        samples: in the order of the source.
        skipped: bad images and repeated rows that were left out.
        ignored: hidden files and files that are no images (class folders only).
    """

    root: Path
    task: Task
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    ignored: int = 0

    @property
    def left_out(self) -> tuple[Skipped, ...]:
        """What was left out."""
        return self.skipped

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples per class, (K,) int64; a sample with several labels counts in each."""
        flat = [k for sample in self.samples for k in sample.classes]
        return np.bincount(np.array(flat, np.int64), minlength=len(self.labels)).astype(np.int64)

    def relative(self, sample: Sample) -> str:
        """The sample's path from the root, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()

    def fingerprint(self) -> str:
        """SHA-256 over class names and every sample's relative path, labels and content, whatever their order."""
        lines = sorted(
            json.dumps([self.relative(sample), [self.labels[k] for k in sample.classes], file_digest(sample.path)])
            for sample in self.samples
        )
        return hashlib.sha256("\n".join([json.dumps([self.task, self.labels]), *lines]).encode()).hexdigest()


READERS: dict[str, Callable[[Path, Columns], Table]] = {
    "folder": read_folder,
    "csv": read_table,
    "jsonl": read_jsonl,
}
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def read_dataset(
    path: Path,
    *,
    task: str = "auto",
    labels: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    separator: str = "|",
    on_bad_image: OnBadImage = "fail",
    progress: bool = True,
) -> DataSet:
    """Reads and checks a data set; the format follows from the path.

    Args:
        path: a folder of class folders, or a .csv, .tsv, .jsonl or .ndjson file beside its images.
        task: "auto", or what the labels mean. Auto: multilabel where the column is `labels` or holds lists,
            binary where the labels are exactly 0 and 1, else multiclass.
        labels: the only class names allowed, in this order; without it: those found, sorted.
        image_column: the column of paths, where its name is not one of the known aliases.
        label_column: the same for the label.
        group_column: the same for the group.
        split_column: the same for the split.
        separator: between several labels in one cell.
        on_bad_image: an image that does not decode ends the reading, or is left out and counted.
        progress: show a bar on stderr while images are decoded, if that is a terminal.

    Returns:
        The data set, every image of which was decoded once.

    Raises:
        InvalidInput: anything wrong: the first ten problems with file and line, and how many there are.
    """
    if task != "auto" and task not in _TASKS:
        raise InvalidInput(f"task '{task}' is none of auto, {', '.join(_TASKS)}")
    path = Path(os.path.abspath(path))
    asked = {"image": image_column, "label": label_column, "group": group_column, "split": split_column}
    names = {role: name for role, name in asked.items() if name is not None}
    columns = Columns(names, separator, None if task == "auto" else task == "multilabel")
    table = READERS[infer_format(path)](path, columns)
    if not table.rows:
        raise InvalidInput(f"{path}: no samples")
    names_found = _choose_labels(table, labels, str(path))
    kind = _choose_task(task, table.multilabel, names_found)
    placed, repeated = _locate(table, path)
    index = {label: k for k, label in enumerate(names_found)}
    samples = [_sample(row, file, index, kind) for row, file in placed]
    good, bad = _decode_all(samples, on_bad_image, path, progress)
    return DataSet(table.root, kind, names_found, good, (*repeated, *bad), table.ignored)


def infer_format(path: Path) -> str:
    """The READERS key for a path: a folder, or what the suffix says."""
    if not path.exists():
        raise InvalidInput(f"{path}: no such file or folder")
    name = "folder" if path.is_dir() else SUFFIXES.get(path.suffix.lower())
    if name is None:
        raise InvalidInput(f"{path}: unknown format; known: a folder of class folders, {', '.join(SUFFIXES)}")
    return name


def _choose_labels(table: Table, given: Sequence[str] | None, source: str) -> tuple[str, ...]:
    found = {label for row in table.rows for label in row.labels}
    if given is None:
        if not found:
            raise InvalidInput(f"{source}: no sample has a label")
        return sort_labels(found)
    if len(set(given)) != len(given) or not all(given):
        raise InvalidInput("the labels to use must be different and not empty")
    problems = Problems(source)
    known = ", ".join(given[:10]) + (", ..." if len(given) > 10 else "")
    for row in table.rows:
        for label in sorted(set(row.labels).difference(given)):
            problems.add(row.origin, f"unknown label '{label}'; known: {known}")
    problems.stop_if_any()
    return tuple(given)


def sort_labels(found: Set[str]) -> tuple[str, ...]:
    """Class names in numeric order where all are whole numbers, else in the order of text."""
    numeric = all(label.isascii() and label.isdigit() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label), label) if numeric else (0, label)))


def _choose_task(asked: str, multilabel: bool, labels: tuple[str, ...]) -> Task:
    if asked == "binary" and len(labels) != 2:
        raise InvalidInput(f"task 'binary' needs two labels; there are {len(labels)}: {', '.join(labels[:10])}")
    if asked == "auto":
        asked = "multilabel" if multilabel else "binary" if labels == ("0", "1") else "multiclass"
    return _TASKS[asked]


def _sample(row: Row, file: str, index: Mapping[str, int], task: Task) -> Sample:
    indices = tuple(sorted(index[label] for label in row.labels))
    return Sample(file, indices if task == "multilabel" else indices[0], row.origin, row.split, row.group)


def _locate(table: Table, source: Path) -> tuple[list[tuple[Row, str]], list[Skipped]]:
    """Finds every row's file below the root; of rows that say the same of one image, the first is kept."""
    problems, kept, repeated = Problems(source.name), dict[str, Row](), list[Skipped]()
    for row in table.rows:
        try:
            file = str(find_file(table.root, row.image))
        except InvalidInput as error:
            problems.add(row.origin, str(error))
            continue
        first = kept.setdefault(file, row)
        if first is row:
            continue
        if (set(first.labels), first.split, first.group) == (set(row.labels), row.split, row.group):
            repeated.append(Skipped(row.origin, f"repeats {first.origin}"))
        else:
            problems.add(row.origin, f"'{row.image}' is already in {first.origin} with another label, split or group")
    problems.stop_if_any()
    return [(row, file) for file, row in kept.items()], repeated


def find_file(root: Path, written: str) -> Path:
    """The file meant by a path as written: literally, without blanks around it, or with its apostrophe undone.

    "Outside" is judged by the path's text: links that the owner of the folder put there are followed.
    """
    for text in dict.fromkeys((written, written.strip(), restore(written.strip()))):
        file = Path(os.path.normpath(root / text))
        if not file.is_relative_to(root):
            raise InvalidInput(f"'{text}' is outside the data set's folder {root}")
        if file.is_file():
            return file
    raise InvalidInput(f"no file '{written}'")


def _decode_all(
    samples: Sequence[Sample], on_bad_image: OnBadImage, source: Path, progress: bool
) -> tuple[tuple[Sample, ...], tuple[Skipped, ...]]:
    problems, good, bad = Problems(source.name), list[Sample](), list[Skipped]()
    bar = tqdm(total=len(samples), desc="checking images", unit=" images", disable=None if progress else True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for sample, reason in zip(samples, map_ahead(pool, _decode_fault, samples), strict=True):
            bar.update()
            if reason is None:
                good.append(sample)
                continue
            bad.append(Skipped(sample.origin, f"{sample.path.name}: {reason}"))
            problems.add(sample.origin, f"{sample.path.name}: {reason}")
    if on_bad_image == "fail":
        problems.stop_if_any()
    if not good:
        raise InvalidInput(f"{source}: none of the {len(samples)} images can be read; the first: {problems.found[0]}")
    return tuple(good), tuple(bad)


def _decode_fault(sample: Sample) -> str | None:
    try:
        decode_image(sample.path.read_bytes())
    except InvalidInput as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
