"""Pascal VOC's XML written anew with some boxes changed; files that do not change stay as they are, byte for byte."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml.ElementTree import fromstring

from scripts.box_data import BoxDataSet, BoxSample, as_stored
from scripts.box_decisions import BoxEdits, Drawn
from scripts.folders import walk
from scripts.voc import CORNERS, counts_from_one, read_size

_DIGITS = 4


def write_voc(source: Path, data: BoxDataSet, edits: Mapping[str, BoxEdits], out: Path) -> None:
    """The XML files and the lists in ImageSets; comments in files that change are lost."""
    changed = {sample.origin: (sample, edits[data.relative(sample)]) for sample in data.samples
               if data.relative(sample) in edits}  # fmt: skip
    gone = {Path(origin).stem for origin, (_, edit) in changed.items() if edit.dropped}
    for file in walk(source):
        name = file.relative_to(source).as_posix()
        if file.suffix.lower() not in (".xml", ".txt") or (name in changed and changed[name][1].dropped):
            continue
        content = file.read_bytes()
        if name in changed:
            sample, edit = changed[name]
            content = _edit_tree(fromstring(content, forbid_dtd=True), edit, sample)
        elif file.suffix.lower() == ".txt" and "ImageSets" in file.relative_to(source).parts:
            lines = content.splitlines(keepends=True)
            content = b"".join(line for line in lines if line.split()[:1] not in [[stem.encode()] for stem in gone])
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def _edit_tree(tree: Element, edit: BoxEdits, sample: BoxSample) -> bytes:
    for number, found in enumerate(tree.findall("object"), start=1):
        if number in edit.removed:
            tree.remove(found)
        elif number in edit.changed:
            _redraw(found, edit.changed[number], tree, sample)
    for drawn in edit.added:
        found = SubElement(tree, "object")
        SubElement(found, "name")
        SubElement(found, "difficult").text = "0"
        _redraw(found, drawn, tree, sample)
    written: bytes = tostring(tree, encoding="utf-8")
    return written + b"\n"


def _redraw(found: Element, drawn: Drawn, tree: Element, sample: BoxSample) -> None:
    if drawn.label is not None:
        _child(found, "name").text = drawn.label
    if drawn.xyxy is not None:
        x1, y1, x2, y2 = as_stored(drawn.xyxy, sample, read_size(tree) or (None, None))
        ones = counts_from_one(tree)
        corners = _child(found, "bndbox")
        for name, value in zip(CORNERS, (x1 + ones, y1 + ones, x2, y2), strict=True):
            _child(corners, name).text = f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")


def _child(parent: Element, name: str) -> Element:
    found = parent.find(name)
    return SubElement(parent, name) if found is None else found
