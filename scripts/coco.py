"""COCO's JSON: images, categories, annotations, read into boxes, and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from models.errors import InvalidInput
from scripts.box_data import BoxDataSet
from scripts.box_tables import BoxTable, RawBox, RawImage, read_box, read_bytes
from scripts.readers import Skipped
from scripts.tables import SPLITS, Problems

Record = Mapping[str, object]
Id = int | str


def read_coco(path: Path, images: Path | None = None) -> BoxTable:
    """Reads one JSON file; its pictures are in `images`, or beside it, or in the folder images/ beside it.

    Classes are the categories in the order of their ids. An annotation with `iscrowd` is an ignore region. Beyond
    COCO, an image may have the keys `split` (train, val, test) and `group`.

    Raises:
        InvalidInput: not such a file; images or categories that cannot be told apart.
    """
    document = _parse(path)
    problems, faults = Problems(path.name), list[Skipped]()
    names = _read_categories(document, path.name, problems)
    records = _by_id(_list(document, "images", path.name), "image", path.name, problems)
    problems.stop_if_any()
    boxes: dict[Id, list[RawBox]] = {key: [] for key in records}
    seen = set[Id]()
    for position, record in enumerate(_list(document, "annotations", path.name)):
        key = record.get("id")
        origin = f"{path.name}: annotation {key if _is_id(key) else f'#{position + 1}'}"
        try:
            box = _read_annotation(record, names, origin)
            if box.id is not None and box.id in seen:
                raise InvalidInput("the id is there more than once")
            image = record.get("image_id")
            if not _is_id(image) or image not in boxes:
                raise InvalidInput(f"there is no image {image!r}")
            boxes[image].append(box)
            seen.update(() if box.id is None else (box.id,))
        except InvalidInput as error:
            faults.append(Skipped(origin, str(error)))
    found = [_read_image(key, record, tuple(boxes[key]), path.name, problems) for key, record in records.items()]
    problems.stop_if_any()
    root = path.parent if images is None else images
    folders = (path.parent, path.parent / "images") if images is None else (images,)
    return BoxTable(root, folders, tuple(found), tuple(names.values()), tuple(faults))


def write_coco(path: Path, data: BoxDataSet) -> None:
    """Writes a data set as one COCO file, with the keys `split` and `group` where samples have them.

    Pictures are not copied: the file has their paths from the root. Ids count from 1; ignored boxes have `iscrowd`.
    """
    images: list[Record] = []
    annotations: list[Record] = []
    for number, sample in enumerate(data.samples, start=1):
        about = {"id": number, "file_name": data.relative(sample), "width": sample.width, "height": sample.height}
        places = {"split": sample.split, "group": sample.group}
        images.append(about | {key: value for key, value in places.items() if value is not None})
        rows = zip(sample.boxes.xyxy.tolist(), sample.boxes.labels.tolist(), sample.boxes.ignored.tolist(), strict=True)
        for (x1, y1, x2, y2), label, ignored in rows:
            wide, high = x2 - x1, y2 - y1
            box = {"bbox": [x1, y1, wide, high], "area": wide * high, "iscrowd": int(ignored)}
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1}
            annotations.append(place | box)
    categories = [{"id": number, "name": name} for number, name in enumerate(data.labels, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _parse(path: Path) -> Record:
    try:
        document = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name}: not JSON: {error}") from None
    if not isinstance(document, dict) or not {"images", "categories"} <= document.keys():
        raise InvalidInput(f"{path.name}: not a COCO file; it needs images, annotations and categories")
    return document


def _list(document: Record, key: str, source: str) -> list[Record]:
    rows = document.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidInput(f"{source}: '{key}' is not a list of objects")
    return rows


def _by_id(rows: list[Record], kind: str, source: str, problems: Problems) -> dict[Id, Record]:
    found: dict[Id, Record] = {}
    for position, row in enumerate(rows):
        key = row.get("id")
        if not _is_id(key):
            problems.add(f"{source}: {kind} #{position + 1}", "its id is neither a whole number nor text")
        elif key in found:
            problems.add(f"{source}: {kind} {key}", "the id is there more than once")
        else:
            found[cast(Id, key)] = row
    return found


def _read_categories(document: Record, source: str, problems: Problems) -> dict[Id, str]:
    """Names by id, in the order of the ids."""
    rows = _by_id(_list(document, "categories", source), "category", source, problems)
    names: dict[Id, str] = {}
    for key in sorted(rows, key=lambda key: (isinstance(key, str), key)):
        name = rows[key].get("name")
        if not isinstance(name, str) or not name.strip():
            problems.add(f"{source}: category {key}", "it has no name")
        elif name.strip() in names.values():
            problems.add(f"{source}: category {key}", f"the name '{name}' is there more than once")
        else:
            names[key] = name.strip()
    if not rows:
        problems.add(source, "there are no categories")
    return names


def _read_annotation(record: Record, names: Mapping[Id, str], origin: str) -> RawBox:
    key, category, written = record.get("id"), record.get("category_id"), record.get("bbox")
    if key is not None and not _is_id(key):
        raise InvalidInput("its id is neither a whole number nor text")
    if not _is_id(category) or category not in names:
        raise InvalidInput(f"there is no category {category!r}")
    if not isinstance(written, list):
        raise InvalidInput("there is no bbox" if written is None else "bbox is not a list")
    x, y, width, height = read_box(written)
    crowd = record.get("iscrowd") or 0
    if not isinstance(crowd, int) or crowd not in (0, 1):
        raise InvalidInput(f"iscrowd is {crowd!r}, not 0 or 1")
    corners = (x, y, x + width, y + height)
    return RawBox(corners, names[cast(Id, category)], origin, cast(Id | None, key), bool(crowd))


def _read_image(key: Id, record: Record, boxes: tuple[RawBox, ...], source: str, problems: Problems) -> RawImage:
    origin = f"{source}: image {key}"
    file, split, group = record.get("file_name"), record.get("split"), record.get("group")
    if not isinstance(file, str) or not file.strip():
        problems.add(origin, "it has no file_name")
    if split is not None and str(split).lower() not in SPLITS:
        problems.add(origin, f"split '{split}' is none of train, val, test")
    size = (record.get("width"), record.get("height"))
    known = cast(tuple[int, int], size) if all(isinstance(side, int) and side > 0 for side in size) else None
    part = None if split is None else SPLITS.get(str(split).lower())
    return RawImage(str(file), boxes, origin, part, None if group is None else str(group), key, known)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
