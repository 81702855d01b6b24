"""Audited boxes for FiftyOne's app: a COCODetectionDataset with the given boxes, and one with the suggested ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.box_data import BoxDataSet
from scripts.box_issues import BoxIssue
from scripts.box_tables import Box
from scripts.fiftyone import write_json


def write_box_fiftyone(folder: Path, data: BoxDataSet, issues: Sequence[BoxIssue]) -> None:
    """Writes data.json (where the pictures are), labels.json and suggestions.json (`labels_path`), both COCO.

    Every annotation says `quality` and `cause`, which FiftyOne shows with `extra_attrs=True`; suggestions are those of
    flagged boxes and missing objects.

    Args:
        folder: made where it is not there.
        data: what was audited.
        issues: by `scripts.box_issues.find_box_issues`.
    """
    folder.mkdir(exist_ok=True)
    paths = {data.relative(sample): str(sample.path) for sample in data.samples}
    write_json(folder / "data.json", paths)
    given = [(issue, *issue.given) for issue in issues if issue.given is not None]
    write_json(folder / "labels.json", _document(data, given))
    write_json(folder / "suggestions.json", _document(data, list(_suggested(issues))))


def _suggested(issues: Sequence[BoxIssue]) -> Iterator[tuple[BoxIssue, int, Box]]:
    for issue in issues:
        label, box = issue.given or (None, None)
        label = label if issue.label is None else issue.label
        box = box if issue.box is None else issue.box
        if label is not None and box is not None and (issue.label is not None or issue.box is not None):
            yield issue, label, box


def _document(data: BoxDataSet, boxes: Sequence[tuple[BoxIssue, int, Box]]) -> dict[str, Any]:
    images = [
        {"id": k, "file_name": data.relative(sample), "width": sample.width, "height": sample.height}
        for k, sample in enumerate(data.samples, start=1)
    ]
    annotations = [
        {
            "id": number,
            "image_id": issue.sample + 1,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "quality": issue.quality,
            "cause": issue.cause,
        }
        for number, (issue, label, (x1, y1, x2, y2)) in enumerate(boxes, start=1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(data.labels, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
