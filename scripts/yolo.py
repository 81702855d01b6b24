"""YOLO's folders: a text file for each picture, a line for each box, in shares of the picture's sides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from models.errors import InvalidInput
from scripts.box_tables import BoxTable, RawBox, RawImage, read_box, read_bytes
from scripts.folders import IMAGES, walk
from scripts.readers import Skipped
from scripts.tables import SPLITS, Problems

CONFIGS = ("data.yaml", "data.yml")
_CLASSES = ("classes.txt", "labels/classes.txt")
_SPLIT_KEYS = ("train", "val", "test")


@dataclass(frozen=True)
class _Picture:
    """A picture, the file of its boxes, and its split."""

    file: Path
    labels: Path
    split: str | None


def read_yolo(path: Path, images: Path | None = None) -> BoxTable:
    """Reads a folder with data.yaml, or with images/, labels/ and classes.txt.

    The boxes of images/a/x.jpg are in labels/a/x.txt: lines of `class x y width height`, x and y of the centre, class a
    position in the list of names. A picture without that file, or with an empty one, has no objects. Splits are those
    of data.yaml, else folders train/, val/ and test/ below images/.

    Args:
        path: the folder.
        images: the folder of pictures, where it is not in `path`.

    Raises:
        InvalidInput: no names, a folder that data.yaml names and that is not there, a file that is not text.
    """
    config = _read_config(path)
    names = _read_names(path, config)
    root = path if images is None else images
    pictures = list(_pictures(path, config, images))
    faults = list(_orphans(path, pictures))
    found: list[RawImage] = []
    for picture in pictures:
        origin = picture.labels.relative_to(path).as_posix()
        boxes = tuple(_read_lines(picture.labels, origin, names, faults)) if picture.labels.is_file() else ()
        found.append(RawImage(picture.file.relative_to(root).as_posix(), boxes, origin, picture.split))
    return BoxTable(root, (root,), tuple(found), names, tuple(faults), shares=True)


def _read_config(path: Path) -> Mapping[str, object]:
    file = next((path / name for name in CONFIGS if (path / name).is_file()), None)
    if file is None:
        return {}
    try:
        config = yaml.safe_load(read_bytes(file).decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file.name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{file.name}: should hold names, train and val")
    return {str(key): value for key, value in config.items()}


def _read_names(path: Path, config: Mapping[str, object]) -> tuple[str, ...]:
    written: object = config.get("names")
    source = CONFIGS[0]
    if written is None:
        file = next((path / name for name in _CLASSES if (path / name).is_file()), None)
        if file is None:
            raise InvalidInput(f"{path}: no class names; expected data.yaml with names, or classes.txt")
        source, lines = file.name, read_bytes(file).decode("utf-8-sig", "replace").splitlines()
        written = [line.strip() for line in lines if line.strip()]
    if isinstance(written, dict):
        if sorted(written, key=str) != sorted(range(len(written)), key=str):
            raise InvalidInput(f"{source}: the names must be numbered 0, 1, 2, ...")
        written = [written[k] for k in range(len(written))]
    odd = (
        [type(name).__name__ for name in written if type(name) not in (str, int, float)]
        if isinstance(written, list)
        else []
    )
    if odd:
        raise InvalidInput(
            f"{source}: a name is a {odd[0]}, not text; YAML reads yes, no, on and off as bool: put them in quotes"
        )
    names = tuple(str(name).strip() for name in written) if isinstance(written, list) else ()
    if not names or not all(names) or len(set(names)) != len(names):
        raise InvalidInput(f"{source}: names must be a list of different names, none empty")
    return names


def _pictures(path: Path, config: Mapping[str, object], images: Path | None) -> Iterator[_Picture]:
    listed = [key for key in _SPLIT_KEYS if config.get(key)]
    if images is not None or not listed:
        folder = path / "images" if images is None else images
        if not folder.is_dir():
            raise InvalidInput(f"{path}: no folder of pictures {folder.name}/")
        for file in _images(folder):
            inside = file.relative_to(folder)
            split = SPLITS.get(inside.parts[0].lower()) if len(inside.parts) > 1 else None
            yield _Picture(file, (path / "labels" / inside).with_suffix(".txt"), split)
        return
    for key in listed:
        entries = config[key]
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                raise InvalidInput(f"{CONFIGS[0]}: {key} should be a folder, a file, or a list of them")
            yield from (_Picture(file, _labels_of(file, path), key) for file in _entry(entry, path, config))


def _entry(entry: str, path: Path, config: Mapping[str, object]) -> list[Path]:
    """The pictures that a line of data.yaml means: a folder, or a text file that lists them."""
    # `path` is often a folder of the machine that wrote the file, and `../train` often means train/.
    below = entry.replace("\\", "/")
    while below.startswith(("../", "./")):
        below = below.partition("/")[2]
    root = config.get("path") or "."
    if not isinstance(root, str):
        raise InvalidInput(f"{CONFIGS[0]}: path should be a folder")
    starts = [path / root, path]
    candidates = [(start / text).resolve() for start in starts for text in (entry, below)]
    inside = [one for one in candidates if one.is_relative_to(path) and one.exists()]
    if not inside:
        raise InvalidInput(f"{CONFIGS[0]}: '{entry}' is not in {path}")
    if inside[0].is_dir():
        return _images(inside[0])
    lines = read_bytes(inside[0]).decode("utf-8-sig", "replace").splitlines()
    files = [(path / line.strip()).resolve() for line in lines if line.strip()]
    outside = [file.name for file in files if not file.is_relative_to(path)]
    if outside:
        raise InvalidInput(f"{inside[0].name}: '{outside[0]}' is outside {path}")
    return files


def _labels_of(file: Path, path: Path) -> Path:
    """Where a picture's boxes are: `labels` in place of the last `images` of its path, else beside it."""
    parts = list(file.relative_to(path).parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return path.joinpath(*parts).with_suffix(".txt")


def _images(folder: Path) -> list[Path]:
    return [file for file in walk(folder) if file.suffix.lower() in IMAGES]


def _orphans(path: Path, pictures: Sequence[_Picture]) -> Iterator[Skipped]:
    """The files of boxes with which no picture goes."""
    used = {picture.labels for picture in pictures}
    for folder in sorted({file.parent for file in used if "labels" in file.relative_to(path).parts}):
        for file in sorted(folder.glob("*.txt")):
            if file not in used and file.name != "classes.txt" and read_bytes(file).strip():
                yield Skipped(file.relative_to(path).as_posix(), "no picture goes with this file")


def _read_lines(file: Path, origin: str, names: Sequence[str], faults: list[Skipped]) -> Iterator[RawBox]:
    problems = Problems(origin)
    try:
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        problems.add(origin, "not UTF-8 text")
        lines = []
    problems.stop_if_any()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            x, y, width, height = read_box(fields[1:])
            if not fields[0].isdecimal() or int(fields[0]) >= len(names):
                raise InvalidInput(f"there is no class {fields[0]}; there are 0 to {len(names) - 1}")
        except InvalidInput as error:
            faults.append(Skipped(f"{origin}:{number}", str(error)))
            continue
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        yield RawBox(box, names[int(fields[0])], f"{origin}:{number}", number)
