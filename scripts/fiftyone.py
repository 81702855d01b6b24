"""The audited labels for FiftyOne's app: folders that its own importers read, without FiftyOne.

`fiftyone/` is a FiftyOneImageClassificationDataset (boxes: scripts/box_fiftyone.py): data.json says where the images
are, labels.json holds the given labels, and suggestions.json, for `labels_path`, those that the audit would give.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.issues import written_whole
from scripts.readers import DataSet
from scripts.report import Findings

FOLDER = "fiftyone"


def write_fiftyone(folder: Path, findings: Findings) -> None:
    """Writes data.json, labels.json and suggestions.json, the last of flagged images only.

    Args:
        folder: made where it is not there.
        findings: of the audit of a classifier's data set.
    """
    data, judged = findings.data, findings.judged
    names = _distinct_names(data)
    paths = {name + sample.path.suffix: str(sample.path) for name, sample in zip(names, data.samples, strict=True)}
    given = {name: _target(sample.classes, data) for name, sample in zip(names, data.samples, strict=True)}
    flagged = (row for row in range(len(names)) if judged.is_issue[row])
    suggested = {names[row]: _target(judged.suggested[row], data) for row in flagged}
    folder.mkdir(exist_ok=True)
    write_json(folder / "data.json", paths)
    write_json(folder / "labels.json", {"classes": data.labels, "labels": given})
    write_json(folder / "suggestions.json", {"classes": data.labels, "labels": suggested})


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """A JSON file that appears only when all of it is written."""
    with written_whole(path) as file:
        json.dump(document, file, ensure_ascii=False)


def _distinct_names(data: DataSet) -> list[str]:
    """Each image's path without its suffix, which is how FiftyOne names it; those that are there twice get a number."""
    found = dict[str, None]()
    for sample in data.samples:
        stem = os.path.splitext(data.relative(sample))[0]
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = None
    return list(found)


def _target(classes: Sequence[int], data: DataSet) -> int | list[int]:
    return list(classes) if data.task == "multilabel" else classes[0]
