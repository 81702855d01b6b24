"""Real little data sets of boxes on disk: embedded garments on a dark page, in every format that is read."""

import csv
import io
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from models.errors import InvalidInput
from models.image import Pixels
from scripts.box_data import BoxDataSet
from scripts.box_readers import read_boxes

WIDTH, HEIGHT = 96, 64
LABELS = ("Bag", "Dress", "Sandal")
Page = list[tuple[str, tuple[float, float, float, float]]]
PAGES: dict[str, Page] = {
    "one.png": [("Dress", (2, 4, 30, 32)), ("Bag", (40, 30, 68, 58))],
    "two.png": [("Sandal", (10, 10, 38, 38))],
    "none.png": [],
}


@dataclass(frozen=True)
class CocoFile:
    """A COCO document to break and to write."""

    folder: Path
    document: dict[str, Any]

    def write(self, name: str = "instances.json") -> Path:
        path = self.folder / name
        path.write_text(json.dumps(self.document), encoding="utf-8")
        return path


@cache
def garments() -> dict[str, Pixels]:
    """One (28, 28) uint8 garment of each class, by name."""
    data = resources.files("scripts").joinpath("data", "garments.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names, labels = arrays["classes"].tolist(), arrays["test_labels"]
        return {str(name): arrays["test_images"][np.flatnonzero(labels == k)[0]] for k, name in enumerate(names)}


def write_pages(folder: Path, pages: dict[str, Page] = PAGES) -> None:
    """The pictures, RGB."""
    items = garments()
    for name, page in pages.items():
        canvas = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
        for label, (x1, y1, x2, y2) in page:
            item = Image.fromarray(items[label]).resize((int(x2 - x1), int(y2 - y1)))
            canvas[int(y1) : int(y2), int(x1) : int(x2)] = np.asarray(item)[..., None]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas).save(path)


def coco(folder: Path, images: str = "images") -> CocoFile:
    """The pages as COCO; categories are listed out of order."""
    write_pages(folder / images)
    annotations: list[dict[str, object]] = []
    for number, page in enumerate(PAGES.values(), start=1):
        for label, (x1, y1, x2, y2) in page:
            one = {"id": 100 + len(annotations), "image_id": number, "category_id": LABELS.index(label) + 3}
            annotations.append(one | {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0})
    pictures = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(PAGES, 1)
    ]
    categories = [{"id": k + 3, "name": name} for k, name in enumerate(LABELS)][::-1]
    return CocoFile(folder, {"images": pictures, "annotations": annotations, "categories": categories})


def yolo(folder: Path, config: str | None = None) -> Path:
    """The pages as YOLO: data.yaml where `config` is given, else classes.txt."""
    write_pages(folder / "images")
    (folder / "labels").mkdir()
    for name, page in PAGES.items():
        lines = [
            f"{LABELS.index(label)} {(x1 + x2) / 2 / WIDTH:.6f} {(y1 + y2) / 2 / HEIGHT:.6f}"
            f" {(x2 - x1) / WIDTH:.6f} {(y2 - y1) / HEIGHT:.6f}\n"
            for label, (x1, y1, x2, y2) in page
        ]
        if lines:
            (folder / "labels" / name).with_suffix(".txt").write_text("".join(lines))
    if config is None:
        (folder / "classes.txt").write_text("\n".join(LABELS) + "\n")
    else:
        (folder / "data.yaml").write_text(config)
    return folder


def voc(folder: Path) -> Path:
    """The pages as Pascal VOC, the XML beside the pictures."""
    write_pages(folder)
    for name, page in PAGES.items():
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "filename").text = name
        size = ElementTree.SubElement(tree, "size")
        for side, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
            ElementTree.SubElement(size, side).text = str(value)
        for label, box in page:
            found = ElementTree.SubElement(tree, "object")
            ElementTree.SubElement(found, "name").text = label
            corners = ElementTree.SubElement(found, "bndbox")
            for corner, number in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(corners, corner).text = str(number)
        ElementTree.ElementTree(tree).write((folder / name).with_suffix(".xml"))
    return folder


def box_csv(folder: Path, header: str = "image,x1,y1,x2,y2,label") -> Path:
    """The pages as a table."""
    write_pages(folder)
    path = folder / "boxes.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(header.split(","))
        for name, page in PAGES.items():
            out.writerows([name, *box, label] for label, box in page)
            if not page:
                out.writerow([name, "", "", "", "", ""])
    return path


def found(data: BoxDataSet) -> dict[str, Page]:
    """A data set as the pages that it was written from."""
    return {
        sample.path.name: [
            (data.labels[label], (box[0], box[1], box[2], box[3]))
            for label, box in zip(sample.boxes.labels.tolist(), sample.boxes.xyxy.round(3).tolist(), strict=True)
        ]
        for sample in data.samples
    }


def fails(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_boxes(path, progress=False, **options)
    return str(caught.value)
