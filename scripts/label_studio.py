"""The flagged labels as tasks for Label Studio: the image, the suggestion as a prediction, the quality as its score."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.issues import make_rows, written_whole
from scripts.report import Findings


def write_tasks(path: Path, findings: Findings, prefix: str) -> None:
    """Writes a JSON file that Label Studio imports.

    Args:
        path: of the file.
        findings: of the audit.
        prefix: what stands before an image's path; Label Studio serves local files at `/data/local-files/?d=`.
    """
    rows = make_rows(findings.data, findings.judged, None, findings.duplicates)
    tasks = [_task(row, prefix) for _, row in rows if row["is_label_issue"]]
    with written_whole(path) as file:
        json.dump(tasks, file, ensure_ascii=False, indent=1)


def _task(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    suggested = row["suggested_label"]
    choices = suggested if isinstance(suggested, list) else [suggested]
    return {
        "data": {
            "image": prefix + quote(row["image"]),
            "path": row["image"],
            "given_label": row["given_label"],
            "label_score": row["label_score"],
        },
        "predictions": [
            {
                "model_version": "focalserve audit",
                "score": row["label_score"],
                "result": [
                    {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": choices}}
                ],
            }
        ],
    }
