"""Class folders, the layout of torchvision's ImageFolder, read into rows."""

import os
from collections.abc import Iterator
from pathlib import Path

from scripts.tables import SPLITS, Columns, Problems, Row, Table

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")


def read_folder(path: Path, columns: Columns) -> Table:
    """Reads ROOT/CLASS/**/IMAGE, or ROOT/train/CLASS, ROOT/val/CLASS, ROOT/test/CLASS where train/ has folders."""
    problems = Problems(str(path))
    folders, ignored = _class_folders(path, problems)
    rows: list[Row] = []
    for folder, split in folders:
        files = list(walk(folder))
        images = [file.relative_to(path).as_posix() for file in files if _is_image(file)]
        if not images:
            problems.add(folder.relative_to(path).as_posix(), "the class folder has no images; fill or delete it")
        rows += [Row(image, (folder.name,), image, split) for image in images]
        ignored += len(files) - len(images)
    problems.stop_if_any()
    return Table(path, tuple(rows), ignored=ignored)


def _class_folders(root: Path, problems: Problems) -> tuple[list[tuple[Path, str | None]], int]:
    """The class folders with their split, and how many files lie outside them."""
    tops, ignored = _subfolders(root), _loose_files(root)
    train = [folder for folder in tops if SPLITS.get(folder.name.lower()) == "train"]
    if not any(_subfolders(folder) for folder in train):
        if not tops:
            problems.add(root.name, "no class folders; expected CLASS/IMAGE or train/CLASS/IMAGE")
        return [(folder, None) for folder in tops], ignored
    found: list[tuple[Path, str | None]] = []
    for top in tops:
        split = SPLITS.get(top.name.lower())
        if split is not None:
            ignored += _loose_files(top)
            found += [(folder, split) for folder in _subfolders(top)]
            continue
        files = list(walk(top))
        ignored += len(files)
        if any(_is_image(file) for file in files):
            problems.add(top.name, "a folder of images beside train/ that is neither val nor test; move it away")
    return found, ignored


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGES and not _is_clutter(file.name)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _is_clutter(entry.name))


def _loose_files(folder: Path) -> int:
    return sum(entry.is_file() for entry in folder.iterdir())


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def walk(folder: Path) -> Iterator[Path]:
    """The files below a folder in stable order, through links to folders, each real folder once."""
    seen: set[str] = set()
    for top, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not _is_clutter(name))
        yield from (Path(top, name) for name in sorted(files))
