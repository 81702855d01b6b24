"""Label Studio: pictures with flagged boxes as tasks that it imports, and the rectangles of what it exports.

A task has the given boxes as an annotation and the picture as the audit would have it as a prediction. Coordinates are
percent of the upright picture's sides, from its top left. A given box keeps the region id `box-` and its own id.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from models.box_causes import CAUSES, SPURIOUS
from models.errors import InvalidInput
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_decisions import BoxEdits, Drawn, Id
from scripts.box_issues import MISSING, BoxIssue
from scripts.box_tables import Box, clip_box, read_box, read_number
from scripts.label_studio import (
    CONTROL,
    IMAGE,
    Row,
    finished,
    image_data,
    image_of,
    make_prediction,
    read_tasks,
    write_list,
    write_view,
)
from scripts.tables import Problems

TOOL = "rectanglelabels"
_SAME = 0.5  # pixels; less is not a move


def write_box_tasks(
    path: Path, data: BoxDataSet, issues: Sequence[BoxIssue], prefix: str, fingerprint: str
) -> None:  # fmt: skip
    """Writes a JSON file that Label Studio imports: a task per picture with an issue, the worst first.

    A region's `score` is the box's label_score; where it is flagged, `meta` says so beside the cause. The prediction's
    score is the lowest of its picture's flagged boxes. Ignored boxes, and boxes without an id, are locked.

    Args:
        path: of the file.
        data: what was audited.
        issues: all, the worst first, by `scripts.box_issues.find_box_issues`.
        prefix: what stands before a picture's path; Label Studio serves local files at `/data/local-files/?d=`.
        fingerprint: of the data set, by which `read_box_export` knows the tasks again.
    """
    found = dict[int, list[BoxIssue]]()
    for issue in issues:
        if issue.box_id is not None:
            found.setdefault(issue.sample, []).append(issue)
    worst = dict.fromkeys(issue.sample for issue in issues if issue.is_issue and issue.box_id is not None)
    tasks = list[Row]()
    for number, place in enumerate(worst, start=1):
        sample, flagged = data.samples[place], [issue for issue in found[place] if issue.is_issue]
        judged = {issue.box_id: issue for issue in found[place] if issue.given is not None}
        about = {
            "label_score": flagged[0].quality,
            "causes": [issue.cause for issue in flagged],
            "data_fingerprint": fingerprint,
        }
        # Label Studio takes an imported annotation for the ground truth, unless told otherwise, and keeps its id as
        # `import_id`: by that `read_box_export` knows that no person drew it.
        given = {"id": number, "ground_truth": False, "was_cancelled": False, "result": _given(sample, judged, data)}
        tasks.append(
            {
                "data": image_data(data.relative(sample), prefix) | about,
                "annotations": [given],
                "predictions": [make_prediction(flagged[0].quality, _suggested(sample, judged, flagged, data))],
            }
        )
    write_list(path, tasks)


def write_box_interface(path: Path, labels: Sequence[str]) -> None:
    """Writes the labelling interface for a Label Studio project: the picture, and rectangles with a label per class."""
    write_view(path, "RectangleLabels", "canRotate", "false", "Label", labels)


def read_box_export(path: Path, data: BoxDataSet, fingerprint: str) -> dict[str, BoxEdits]:
    """The edits of each picture that has some, by its path, from Label Studio's JSON export of such tasks.

    A task that nobody finished, or that was skipped, decides nothing. Where several people have annotated one, the
    annotation marked as ground truth decides, else all must agree; given boxes as they were imported are nobody's.
    Boxes are known by their regions' ids: one that is gone is removed, one within half a pixel has not moved.

    Args:
        path: of the export, format "JSON".
        data: what was audited.
        fingerprint: of the data set.

    Raises:
        InvalidInput: not such a file; a task of another audit; a region that is no upright rectangle with one known
            label within its picture; annotators disagree. With the file, the task and the region.
    """
    known = {data.relative(sample): sample for sample in data.samples}
    problems, seen, found = Problems(path.name), set[str](), dict[str, BoxEdits]()
    for place, task in read_tasks(path):
        try:
            image = image_of(task)
            if task["data"].get("data_fingerprint") != fingerprint:
                raise InvalidInput("it is of another audit, or of one before the data changed")
            if image not in known:
                raise InvalidInput(f"the data set has no image '{image}'")
            edits = _decide(task, known[image], data)
            if edits is not None and image in seen:
                raise InvalidInput(f"a second decision on '{image}'")
        except InvalidInput as error:
            problems.add(place, str(error))
            continue
        if edits is not None:
            seen.add(image)
            found[image] = edits
    problems.stop_if_any()
    return {image: edits for image, edits in found.items() if edits != BoxEdits()}


def _region_ids(sample: BoxSample) -> list[str]:
    """A region id for each box; Label Studio cuts ids at a #, hence the quoting."""
    return [
        f"unnamed-{place}" if key is None else "box-" + quote(json.dumps(key), safe="")
        for place, key in enumerate(sample.boxes.ids)
    ]


def _given(sample: BoxSample, judged: Mapping[Id | None, BoxIssue], data: BoxDataSet) -> list[Row]:
    boxes = sample.boxes
    rows = zip(_region_ids(sample), boxes.ids, boxes.labels.tolist(), boxes.xyxy.tolist(), boxes.ignored, strict=True)
    return [
        _region(name, data.labels[label], corners, sample, judged.get(key))
        | ({"readonly": True} if key is None or ignored else {})
        for name, key, label, corners, ignored in rows
    ]


def _suggested(
    sample: BoxSample, judged: Mapping[Id | None, BoxIssue], flagged: Sequence[BoxIssue], data: BoxDataSet
) -> list[Row]:
    """The whole picture with every suggestion in it: an annotation that is made of it loses no other box."""
    result = list[Row]()
    for key, region in zip(sample.boxes.ids, _given(sample, judged, data), strict=True):
        issue = judged.get(key)
        if issue is None or not issue.is_issue:
            result.append(region)
        elif issue.cause != CAUSES[SPURIOUS]:
            label = region["value"][TOOL][0] if issue.label is None else data.labels[issue.label]
            place = region["value"] if issue.box is None else _percent(issue.box, sample)
            result.append(region | {"value": region["value"] | place | {TOOL: [label]}})
    missing = [issue for issue in flagged if issue.cause == MISSING]
    return result + [
        _region(str(issue.box_id), data.labels[issue.label], issue.box, sample, issue)
        for issue in missing
        if issue.label is not None and issue.box is not None
    ]


def _region(name: str, label: str, corners: Sequence[float], sample: BoxSample, issue: BoxIssue | None) -> Row:
    region: Row = {
        "id": name,
        "from_name": CONTROL,
        "to_name": IMAGE,
        "type": TOOL,
        "original_width": sample.width,
        "original_height": sample.height,
        "image_rotation": 0,
        "value": {**_percent(corners, sample), "rotation": 0, TOOL: [label]},
    }
    if issue is not None:
        region["score"] = issue.quality
        if issue.is_issue:
            said = f"{issue.cause.replace('_', ' ')}, label_score {issue.quality:.4f}"
            region["meta"] = {"text": [said], "cause": issue.cause, "label_score": issue.quality}
    return region


def _percent(corners: Sequence[float], sample: BoxSample) -> Row:
    x1, y1, x2, y2 = corners
    across, down = 100.0 / sample.width, 100.0 / sample.height
    return {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down}


def _decide(task: Mapping[str, Any], sample: BoxSample, data: BoxDataSet) -> BoxEdits | None:
    """None where nobody decided anything."""
    said = [(one, _compare(one, sample, data)) for one in finished(task)]
    own = [edits for one, edits in said if one.get("import_id") is None or edits != BoxEdits()]
    if any(edits != own[0] for edits in own):
        raise InvalidInput("its annotators disagree; mark one annotation as ground truth")
    return own[0] if own else None


def _compare(annotation: Mapping[str, Any], sample: BoxSample, data: BoxDataSet) -> BoxEdits:
    """What an annotation changes of a picture's boxes."""
    places = {name: place for place, name in enumerate(_region_ids(sample))}
    left, edits = dict(places), BoxEdits()
    for number, region in enumerate(annotation["result"], start=1):
        try:
            name, label, corners = _read_region(region, sample, data)
            if name not in places:
                edits.added.append(Drawn(label, clip_box(corners, sample.width, sample.height)[0]))
                continue
            if left.pop(name, None) is None:
                raise InvalidInput(f"the region '{name}' is there twice")
            drawn = _difference(label, corners, places[name], sample, data)
            if drawn != Drawn(None, None):
                edits.changed[_changeable(places[name], sample)] = drawn
        except InvalidInput as error:
            raise InvalidInput(f"annotation {annotation.get('id')}, region {number}: {error}") from None
    edits.removed.update(_changeable(place, sample) for place in left.values())
    return edits


def _read_region(region: object, sample: BoxSample, data: BoxDataSet) -> tuple[str, str, Box]:
    """Its id, its label, and its corners in pixels."""
    if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
        raise InvalidInput("not a region with a value")
    kind, value = region.get("type"), region["value"]
    if kind != TOOL:
        raise InvalidInput(f"'{kind}' is not {TOOL}")
    if value.get("rotation") not in (None, 0) or region.get("image_rotation") not in (None, 0):
        raise InvalidInput("it is rotated; boxes here are upright")
    labels = value.get(TOOL)
    if not isinstance(labels, list) or len(labels) != 1:
        raise InvalidInput("a box has one label")
    if labels[0] not in data.labels:
        raise InvalidInput(f"unknown label '{labels[0]}'")
    _check_size(region, sample)
    x, y, width, height = read_box([value.get(key) for key in ("x", "y", "width", "height")])
    across, down = sample.width / 100.0, sample.height / 100.0
    return str(region.get("id")), labels[0], (x * across, y * down, (x + width) * across, (y + height) * down)


def _check_size(region: Mapping[str, Any], sample: BoxSample) -> None:
    """Shares of another frame, as of a photograph that was not turned upright, are other boxes."""
    if "original_width" not in region and "original_height" not in region:
        return
    width, height = read_number(region.get("original_width")), read_number(region.get("original_height"))
    if abs(width * sample.height - height * sample.width) > max(width, height, sample.width, sample.height):
        raise InvalidInput(f"drawn on a picture of {width:g} x {height:g}; here it is {sample.width} x {sample.height}")


def _difference(label: str, corners: Box, place: int, sample: BoxSample, data: BoxDataSet) -> Drawn:
    before = sample.boxes.xyxy[place].tolist()
    moved = max(abs(a - b) for a, b in zip(before, corners, strict=True)) > _SAME
    return Drawn(
        None if label == data.labels[int(sample.boxes.labels[place])] else label,
        clip_box(corners, sample.width, sample.height)[0] if moved else None,
    )


def _changeable(place: int, sample: BoxSample) -> Id:
    key = sample.boxes.ids[place]
    if key is None:
        raise InvalidInput(f"the picture's box {place + 1} has no id in the data set, and so cannot be changed")
    return key
