"""CSV tables of boxes, one a row, read into boxes by picture."""

from collections.abc import Mapping
from pathlib import Path

from models.cells import restore
from models.errors import InvalidInput
from scripts.box_tables import BoxTable, RawBox, RawImage, read_box
from scripts.readers import Skipped
from scripts.tables import ALIASES, SPLITS, Columns, Problems, csv_lines, find_columns

ROLES: dict[str, tuple[str, ...]] = {
    "image": ALIASES["image"],
    "x1": ("x1", "xmin", "x_min", "left"),
    "y1": ("y1", "ymin", "y_min", "top"),
    "x2": ("x2", "xmax", "x_max", "right"),
    "y2": ("y2", "ymax", "y_max", "bottom"),
    "label": ALIASES["label"],
    "group": ALIASES["group"],
    "split": ALIASES["split"],
}
_CORNERS = ("x1", "y1", "x2", "y2")


def has_box_columns(path: Path) -> bool:
    """Whether a CSV file's header has a column for each corner of a box."""
    try:
        _, header = next(csv_lines(path, Problems(path.name)), (1, []))
    except InvalidInput:
        return False
    names = {name.strip().lower() for name in header}
    return all(names.intersection(ROLES[role]) for role in _CORNERS)


def read_box_csv(path: Path, images: Path | None = None) -> BoxTable:
    """Reads a CSV file with the columns image, x1, y1, x2, y2, label, and perhaps split and group.

    Corners are pixels. A row with an image and neither box nor label is a picture without objects. Pictures are in
    `images`, or beside the file, or in the folder images/ beside it.

    Raises:
        InvalidInput: a column is missing, a row of another length, a picture whose rows disagree on split or group.
    """
    problems, faults = Problems(path.name), list[Skipped]()
    lines = csv_lines(path, problems)
    first, header = next(lines, (1, []))
    names = [name.strip().lower() for name in header]
    found = find_columns(names, Columns({}), f"{path.name}:{first}", ROLES)
    boxes: dict[str, list[RawBox]] = {}
    about: dict[str, tuple[str, str | None, str | None]] = {}
    for line, fields in lines:
        origin = f"{path.name}:{line}"
        if len(fields) != len(names):
            problems.add(origin, f"the row has {len(fields)} fields, the header has {len(names)}")
            continue
        row = dict(zip(names, fields, strict=True))
        cells = {role: row[column].strip() for role, column in found.items()}
        _note_image(cells, origin, about, problems)
        held = boxes.setdefault(cells["image"], [])
        try:
            held += _read_row(cells, origin, line)
        except InvalidInput as error:
            faults.append(Skipped(origin, str(error)))
    problems.stop_if_any()
    pictures = tuple(
        RawImage(file, tuple(boxes[file]), origin, split, group) for file, (origin, split, group) in about.items()
    )
    root = path.parent if images is None else images
    folders = (path.parent, path.parent / "images") if images is None else (images,)
    return BoxTable(root, folders, pictures, None, tuple(faults))


def _note_image(
    cells: Mapping[str, str], origin: str, about: dict[str, tuple[str, str | None, str | None]], problems: Problems
) -> None:
    written = cells.get("split", "").lower()
    split, group = SPLITS.get(written), cells.get("group") or None
    if written and split is None:
        problems.add(origin, f"split '{written}' is none of train, val, test")
    if not cells["image"]:
        problems.add(origin, "the image path is empty")
        return
    first = about.setdefault(cells["image"], (origin, split, group))
    if first[1:] != (split, group):
        problems.add(origin, f"'{cells['image']}' is already in {first[0]} with another split or group")


def _read_row(cells: Mapping[str, str], origin: str, line: int) -> list[RawBox]:
    corners, label = [cells[role] for role in _CORNERS], restore(cells["label"])
    if not any(corners):
        if label:
            raise InvalidInput(f"the label '{label}' without a box")
        return []
    box = read_box([text for text in corners if text])
    if not label:
        raise InvalidInput("the label is empty")
    return [RawBox(box, label, origin, line)]
