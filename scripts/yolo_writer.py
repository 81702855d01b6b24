"""YOLO's text files written anew with some boxes changed."""

from collections.abc import Mapping
from pathlib import Path

from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_decisions import BoxEdits, Drawn
from scripts.folders import walk


def write_yolo(source: Path, data: BoxDataSet, edits: Mapping[str, BoxEdits], out: Path) -> None:
    """YOLO's text files; lines that do not change stay as they are, byte for byte."""
    changed = {sample.origin: (sample, edits[data.relative(sample)]) for sample in data.samples
               if data.relative(sample) in edits}  # fmt: skip
    gone = {sample.path for sample, edit in changed.values() if edit.dropped}
    labels = {sample.origin for sample in data.samples}
    for file in walk(source):
        name = file.relative_to(source).as_posix()
        if file.suffix.lower() not in (".txt", ".yaml", ".yml") or name in changed:
            continue
        content = file.read_bytes()
        if file.suffix.lower() == ".txt" and name not in labels and gone:
            content = b"".join(line for line in content.splitlines(keepends=True) if not _lists(line, source, gone))
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    for name, (sample, edit) in changed.items():
        if not edit.dropped:
            old = source / name
            text = old.read_bytes().decode("utf-8-sig") if old.is_file() else ""
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(_edit_lines(text, edit, sample, data).encode())


def _lists(line: bytes, source: Path, gone: set[Path]) -> bool:
    """Whether a line of a list of pictures names one that is gone."""
    named = line.decode("utf-8", "replace").strip()
    return bool(named) and (source / named).resolve() in {path.resolve() for path in gone}


def _edit_lines(text: str, edit: BoxEdits, sample: BoxSample, data: BoxDataSet) -> str:
    lines = list[str]()
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if number not in edit.removed:
            drawn = edit.changed.get(number)
            ending = line[len(line.rstrip("\r\n")) :]
            lines.append(line if drawn is None else _yolo_line(line.split(), drawn, sample, data) + ending)
    if edit.added and lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += "\n"
    return "".join(lines) + "".join(_yolo_line([""] * 5, drawn, sample, data) + "\n" for drawn in edit.added)


def _yolo_line(fields: list[str], drawn: Drawn, sample: BoxSample, data: BoxDataSet) -> str:
    label, *corners = fields
    if drawn.label is not None:
        label = str(data.labels.index(drawn.label))
    if drawn.xyxy is not None:
        x1, y1, x2, y2 = drawn.xyxy
        sides = (sample.width, sample.height) * 2
        shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        corners = [f"{value / side:.8f}" for value, side in zip(shares, sides, strict=True)]
    return " ".join([label, *corners])
