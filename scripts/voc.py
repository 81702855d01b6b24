"""Pascal VOC's XML, a file for each picture, read into boxes.

Coordinates are taken as written, the way of nearly all tools that write the format. PASCAL's own files (their source
names a VOC database) count pixels from 1 and include the last one: there left and top are one less.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from models.errors import InvalidInput
from scripts.box_tables import Box, BoxTable, RawBox, RawImage, read_box, read_bytes
from scripts.folders import IMAGES, walk
from scripts.readers import Skipped
from scripts.tables import SPLITS, Problems

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path, images: Path | None = None) -> BoxTable:
    """Reads every XML file below a folder; a picture is beside its XML, in images/, JPEGImages/, or in `images`.

    Difficult objects are ignore regions. Pictures without an XML file are left out and named: nobody has said that
    they hold no object. The split of a file in train/, val/ or test/ is that, else what ImageSets/Main says.

    Raises:
        InvalidInput: no such files, or files that are not VOC's XML.
    """
    problems, faults = Problems(path.name), list[Skipped]()
    root = path if images is None else images
    listed, pictures, used = _read_image_sets(path), list[RawImage](), set[Path]()
    for file in (file for file in walk(path) if file.suffix.lower() == ".xml"):
        origin = file.relative_to(path).as_posix()
        try:
            tree = _parse(file)
        except InvalidInput as error:
            problems.add(origin, str(error))
            continue
        picture = _find_picture(file, tree, path, images)
        used.add(picture)
        inside = file.relative_to(path).parts[:-1]
        split = SPLITS.get(inside[0].lower()) if inside else None
        name = picture.relative_to(root).as_posix() if picture.is_relative_to(root) else picture.name
        boxes = tuple(_read_objects(tree, origin, faults))
        pictures.append(RawImage(name, boxes, origin, split or listed.get(file.stem), size=read_size(tree)))
    problems.stop_if_any()
    if not pictures:
        raise InvalidInput(f"{path}: no VOC annotations (.xml)")
    bare = [file for file in walk(root) if file.suffix.lower() in IMAGES and file not in used]
    skipped = tuple(Skipped(file.relative_to(root).as_posix(), "has no annotation file") for file in bare)
    return BoxTable(root, (root,), tuple(pictures), None, tuple(faults), skipped)


def _parse(file: Path) -> Element:
    try:
        tree: Element = fromstring(read_bytes(file), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        said = "entities or a DTD are not allowed" if isinstance(error, DefusedXmlException) else str(error)
        raise InvalidInput(f"not readable as XML: {said}") from None
    if tree.tag != "annotation":
        raise InvalidInput(f"a VOC file holds <annotation>, this one <{tree.tag[:40]}>")
    return tree


def _find_picture(file: Path, tree: Element, path: Path, images: Path | None) -> Path:
    """The picture's path, whether it is there or not: by its name in the XML, else by the XML's own name."""
    folders = [images] if images is not None else [file.parent, path / "images", path / "JPEGImages"]
    # Only the name: tools write the path that a picture had on the machine where it was labelled.
    written = Path((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    names = [*([written] if written else []), *(file.stem + suffix for suffix in IMAGES)]
    candidates = [folder / name for name in names for folder in folders]
    return next((one for one in candidates if one.is_file()), candidates[0])


def _read_objects(tree: Element, origin: str, faults: list[Skipped]) -> Iterator[RawBox]:
    ones = counts_from_one(tree)
    for number, found in enumerate(tree.findall("object"), start=1):
        place = f"{origin}: object {number}"
        try:
            name = (found.findtext("name") or "").strip()
            if not name:
                raise InvalidInput("it has no name")
            box, difficult = _read_corners(found, ones), _read_difficult(found)
        except InvalidInput as error:
            faults.append(Skipped(place, str(error)))
            continue
        yield RawBox(box, name, place, number, difficult)


def counts_from_one(tree: Element) -> float:
    """What a file's left and top are more than ours: 1 in PASCAL's own files, else 0."""
    return 1.0 if "VOC" in (tree.findtext("source/database") or "") else 0.0


def _read_corners(found: Element, ones: float) -> Box:
    if len(found.findall("bndbox")) > 1:
        raise InvalidInput("it has more than one bndbox")
    texts = [found.findtext(f"bndbox/{corner}") for corner in CORNERS]
    x1, y1, x2, y2 = read_box([text.strip() for text in texts if text is not None])
    return x1 - ones, y1 - ones, x2, y2


def _read_difficult(found: Element) -> bool:
    text = (found.findtext("difficult") or "").strip()
    if text not in ("", "0", "1"):
        raise InvalidInput(f"difficult is {text[:20]!r}, not 0 or 1")
    return text == "1"


def read_size(tree: Element) -> tuple[int, int] | None:
    """(width, height) as a file has them, or None."""
    width, height = ((tree.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    known = width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0
    return (int(width), int(height)) if known else None


def _read_image_sets(path: Path) -> dict[str, str]:
    """The split of each file's stem, from ImageSets/Main/train.txt, val.txt and test.txt."""
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        file = path / "ImageSets" / "Main" / f"{split}.txt"
        if file.is_file():
            found |= {line.split()[0]: split for line in read_bytes(file).decode("utf-8", "replace").splitlines()
                      if line.strip()}  # fmt: skip
    return found
