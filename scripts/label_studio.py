"""Label Studio: the flagged labels as tasks that it imports, and the decisions in what it exports.

The image, the suggestion as a prediction, the quality as its score. `label_studio.xml` is the labelling interface that
goes with the tasks; its choice `drop` says that an image should go. Boxes: scripts/box_label_studio.py.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from models.errors import InvalidInput
from scripts.issues import make_rows, written_whole
from scripts.report import Findings
from scripts.tables import Problems

DROP = "drop"
CONTROL, IMAGE = "label", "image"
"""Names of the two tags of the labelling interface, which every region repeats."""
Row = dict[str, Any]


def write_tasks(path: Path, findings: Findings, prefix: str) -> None:
    """Writes a JSON file that Label Studio imports.

    Args:
        path: of the file.
        findings: of the audit.
        prefix: what stands before an image's path; Label Studio serves local files at `/data/local-files/?d=`.
    """
    rows = make_rows(findings.data, findings.judged, None, findings.duplicates)
    write_list(path, (_task(row, prefix) for _, row in rows if row["is_label_issue"]))


def write_list(path: Path, tasks: Iterable[Row]) -> None:
    """Writes tasks as the JSON file that Label Studio imports, one by one."""
    with written_whole(path) as file:
        before = "[\n"
        for task in tasks:
            file.write(before + json.dumps(task, ensure_ascii=False))
            before = ",\n"
        file.write("[]\n" if before == "[\n" else "\n]\n")


def image_data(image: str, prefix: str) -> Row:
    """What a task's data says of its image: the address that Label Studio shows, and the path that `image_of` reads."""
    return {"image": prefix + quote(image), "path": image}


def make_prediction(score: float, result: Sequence[Row]) -> Row:
    """A task's prediction; Label Studio sorts tasks by its score."""
    return {"model_version": "focalserve audit", "score": score, "result": list(result)}


def write_interface(path: Path, labels: Sequence[str], several: bool) -> None:
    """Writes the labelling interface for a Label Studio project: the image, a choice for each class, and `drop`."""
    names = [*labels, *([] if DROP in labels else [DROP])]
    write_view(path, "Choices", "choice", "multiple" if several else "single", "Choice", names)


def write_view(path: Path, tag: str, attribute: str, value: str, entry: str, names: Sequence[str]) -> None:
    """Writes a labelling interface of the image and one control tag with an entry for each name."""
    entries = "".join(f"\n    <{entry} value={quoteattr(name)}/>" for name in names)
    with written_whole(path) as file:
        file.write(
            f'<View>\n  <Image name="{IMAGE}" value="$image"/>\n'
            f'  <{tag} name="{CONTROL}" toName="{IMAGE}" {attribute}="{value}">{entries}\n  </{tag}>\n</View>\n'
        )


def read_export(path: Path, labels: Sequence[str]) -> list[tuple[str, Row]]:
    """The decisions in Label Studio's JSON export of such tasks, as rows of a file of decisions with their places.

    A task that nobody finished, or that was skipped, decides nothing. Where several people have annotated one, the
    annotation marked as ground truth decides, else all must agree.

    Args:
        path: of the export, format "JSON".
        labels: class names; `drop` drops an image where no class has that name.

    Raises:
        InvalidInput: not such a file, or annotators disagree.
    """
    problems, rows = Problems(path.name), list[tuple[str, Row]]()
    for place, task in read_tasks(path):
        try:
            row = _decision(task, labels)
        except InvalidInput as error:
            problems.add(place, str(error))
            continue
        if row is not None:
            rows.append((place, row))
    problems.stop_if_any()
    return rows


def read_tasks(path: Path) -> list[tuple[str, Row]]:
    """The tasks of an export with their places.

    Raises:
        InvalidInput: not such a file.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name}: cannot be read: {error}") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InvalidInput(f"{path.name}: not Label Studio's JSON export, which is a list of tasks")
    return [(f"{path.name}: task {task.get('id', number)}", task) for number, task in enumerate(tasks, start=1)]


def finished(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a task that count: the ground truth, else all that were not skipped.

    Raises:
        InvalidInput: it is no task with annotations.
    """
    annotations = task.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise InvalidInput("it has no annotations; export as JSON, not as JSON-MIN or CSV")
    done = [one for one in annotations if not one.get("was_cancelled") and isinstance(one.get("result"), list)]
    return [one for one in done if one.get("ground_truth")] or done


def image_of(task: Mapping[str, Any]) -> str:
    """The image's path in the data set.

    Raises:
        InvalidInput: the task was not made by an audit.
    """
    data = task.get("data")
    path = data.get("path") if isinstance(data, dict) else None
    if not isinstance(path, str):
        raise InvalidInput("its data has no `path`; it does not come from label_studio.json")
    return path


def _decision(task: Mapping[str, Any], labels: Sequence[str]) -> Row | None:
    image, said = image_of(task), [_chosen(one["result"]) for one in finished(task)]
    if not said:
        return None
    if any(one != said[0] for one in said):
        shown = " and ".join(sorted({", ".join(one) or "nothing" for one in said}))
        raise InvalidInput(f"its annotators disagree ({shown}); mark one annotation as ground truth")
    if DROP in said[0] and DROP not in labels:
        return {"image": image, "decision": DROP}
    return {"image": image, "label": said[0]}


def _chosen(result: Sequence[object]) -> list[str]:
    """The choices of one annotation, sorted."""
    found = set[str]()
    for region in result:
        value = region.get("value") if isinstance(region, dict) and region.get("type") == "choices" else None
        choices = value.get("choices") if isinstance(value, dict) else None
        found |= {str(choice) for choice in choices} if isinstance(choices, list) else set()
    return sorted(found)


def _task(row: Row, prefix: str) -> Row:
    suggested = row["suggested_label"]
    choices = suggested if isinstance(suggested, list) else [suggested]
    region = {"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": choices}}
    about = {"given_label": row["given_label"], "label_score": row["label_score"]}
    return {
        "data": image_data(row["image"], prefix) | about,
        "predictions": [make_prediction(row["label_score"], [region])],
    }
