"""Audits of little data sets of boxes on disk, and Label Studio's export of their tasks, for a reviewer to edit."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from models.errors import InvalidInput
from scripts import apply, audit, box_audit
from scripts.box_data import BoxDataSet
from scripts.box_issues import MISSING, BoxIssue
from scripts.box_readers import read_boxes
from tests.box_files import HEIGHT, LABELS, WIDTH, Page, box_csv, coco, voc, yolo

Task = dict[str, Any]
Corners = tuple[float, float, float, float]
SOURCES: dict[str, Callable[[Path], Path]] = {
    "coco": lambda folder: coco(folder).write(), "yolo": yolo, "voc": voc, "csv": box_csv,
}  # fmt: skip
NAMES = {"coco": (100, 101, 102), "yolo": (1, 2, 1), "voc": (1, 2, 1), "csv": (2, 3, 4)}


def find(data: BoxDataSet, name: str) -> int:
    return next(k for k, sample in enumerate(data.samples) if sample.path.name == name)


def issue(
    data: BoxDataSet, name: str, place: int | None, cause: str, quality: float, label: str | None = None,
    box: Corners | None = None,
) -> BoxIssue:  # fmt: skip
    sample = find(data, name)
    boxes = data.samples[sample].boxes
    x1, y1, x2, y2 = (0.0,) * 4 if place is None else boxes.xyxy[place].tolist()
    given = None if place is None else (int(boxes.labels[place]), (x1, y1, x2, y2))
    better = None if label is None else LABELS.index(label)
    key = "new-1" if place is None else boxes.ids[place]
    return BoxIssue(sample, key, quality, cause != "none", cause, given, better, box, (), 1.0, 0.5)


def issues_of(data: BoxDataSet) -> list[BoxIssue]:
    """One of each cause, and a box that is right."""
    return [
        issue(data, "one.png", 0, "spurious", 0.01),
        issue(data, "none.png", None, MISSING, 0.1, "Bag", (1.0, 2.0, 21.0, 12.0)),
        issue(data, "two.png", 0, "badly_located", 0.2, None, (12.0, 9.0, 40.0, 41.0)),
        issue(data, "one.png", 1, "none", 0.9),
    ]


class Review:
    """An audited data set on disk, and Label Studio's export of the tasks that it came with."""

    def __init__(self, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "data").mkdir()
        self.kind, self.folder = kind, folder
        self.source = SOURCES[kind](folder / "data")
        self.data = read_boxes(self.source, progress=False)
        monkeypatch.setattr(box_audit, "cross_judge", lambda *_: issues_of(self.data))
        assert audit.main([str(self.source), "--out", str(folder / "audit"), "--image-url", "/files/?d="]) == 0
        self.tasks: list[Task] = json.loads((folder / "audit" / "label_studio.json").read_text(encoding="utf-8"))
        self.export = export(self.tasks)

    def task(self, name: str) -> Task:
        return next(task for task in self.export if task["data"]["path"].endswith(name))

    def regions(self, name: str) -> list[Task]:
        result: list[Task] = self.task(name)["annotations"][0]["result"]
        return result

    def apply(self) -> dict[str, Page]:
        file = self.folder / "export.json"
        file.write_text(json.dumps(self.export), encoding="utf-8")
        out = self.folder / "fixed"
        assert apply.main([str(self.folder / "audit"), "--decisions", str(file), "--out", str(out)]) == 0
        return read_pages(read_boxes(out if self.source.is_dir() else out / self.source.name, progress=False))

    def refused(self) -> str:
        with pytest.raises(InvalidInput) as caught:
            self.apply()
        assert not (self.folder / "fixed").exists()
        return str(caught.value)


def read_pages(data: BoxDataSet) -> dict[str, Page]:
    """The boxes of each picture, to the last digit."""
    return {
        sample.path.name: [
            (data.labels[label], (box[0], box[1], box[2], box[3]))
            for label, box in zip(sample.boxes.labels.tolist(), sample.boxes.xyxy.tolist(), strict=True)
        ]
        for sample in data.samples
    }


def export(tasks: Sequence[Task]) -> list[Task]:
    """As Label Studio gives back what it imported: ids of its own, the old one as `import_id`."""
    exported = copy.deepcopy(list(tasks))
    for number, task in enumerate(exported):
        task |= {"id": 40 + number, "drafts": [], "inner_id": number + 1, "meta": {}}
        for one in task["annotations"]:
            one |= {"import_id": one["id"], "id": 900 + number, "completed_by": 1, "parent_prediction": None}
    return exported


def region(label: str, corners: Corners, name: str = "Zx9_-aB3kQ") -> Task:
    """A rectangle as the reviewer draws one."""
    return {
        "id": name, "from_name": "label", "to_name": "image", "type": "rectanglelabels", "origin": "manual",
        "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value(label, corners),
    }  # fmt: skip


def value(label: str, corners: Corners) -> Task:
    x1, y1, x2, y2 = corners
    place = {"x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT}
    size = {"width": 100 * (x2 - x1) / WIDTH, "height": 100 * (y2 - y1) / HEIGHT}
    return {**place, **size, "rotation": 0, "rectanglelabels": [label]}


def annotation(number: int, result: Sequence[Task], **more: Any) -> Task:
    """One that a person made."""
    made = {"id": number, "completed_by": 2, "was_cancelled": False, "ground_truth": False, "import_id": None}
    return made | {"result": copy.deepcopy(list(result))} | more
