"""Decisions made in Label Studio, from its JSON export."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import InvalidInput
from scripts.label_studio import read_export, write_interface


def annotation(*choices: str, **more: Any) -> dict[str, Any]:
    """As Label Studio writes one; more: was_cancelled, ground_truth."""
    region = {"id": "Dx", "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": choices}}
    return {"id": 7, "completed_by": 1, "result": [region] if choices else [], "was_cancelled": False} | more


def export(tmp_path: Path, *tasks: list[dict[str, Any]]) -> Path:
    path = tmp_path / "export.json"
    written = [
        {
            "id": 40 + k,
            "data": {"image": f"/data/{k}", "path": f"{k}.png"},
            "annotations": annotations,
            "predictions": [],
        }
        for k, annotations in enumerate(tasks)
    ]
    path.write_text(json.dumps(written), encoding="utf-8")
    return path


def decided(tmp_path: Path, *tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for _, row in read_export(export(tmp_path, *tasks), ["cat", "dog"])]


def test_choices_are_labels_and_skipped_and_open_tasks_decide_nothing(tmp_path: Path) -> None:
    assert decided(
        tmp_path,
        [annotation("dog")],
        [annotation("cat", was_cancelled=True)],
        [],
        [annotation("dog", "cat")],
        [annotation()],
    ) == [
        {"image": "0.png", "label": ["dog"]},
        {"image": "3.png", "label": ["cat", "dog"]},
        {"image": "4.png", "label": []},
    ]


def test_drop_drops_unless_it_is_a_class(tmp_path: Path) -> None:
    path = export(tmp_path, [annotation("drop")])
    assert read_export(path, ["cat"])[0][1] == {"image": "0.png", "decision": "drop"}
    assert read_export(path, ["cat", "drop"])[0][1] == {"image": "0.png", "label": ["drop"]}


def test_annotators_must_agree_or_one_is_the_ground_truth(tmp_path: Path) -> None:
    assert decided(tmp_path, [annotation("cat"), annotation("cat")]) == [{"image": "0.png", "label": ["cat"]}]
    both = [annotation("cat"), annotation("dog", ground_truth=True)]
    assert decided(tmp_path, both) == [{"image": "0.png", "label": ["dog"]}]
    with pytest.raises(InvalidInput, match=r"export.json: task 40: its annotators disagree \(cat and dog\)"):
        decided(tmp_path, [annotation("cat"), annotation("dog")])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read"),
        ("{}", "which is a list of tasks"),
        ('[{"id": 1, "image": "a.png", "choice": "cat"}]', "task 1: its data has no `path`"),
        ('[{"id": 1, "data": {"path": "a.png"}}]', "export as JSON, not as JSON-MIN"),
    ],
)
def test_other_files_are_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=complaint):
        read_export(tmp_path / "export.json", ["cat"])


def test_class_names_are_written_safely_into_the_interface(tmp_path: Path) -> None:
    write_interface(tmp_path / "x.xml", ['a"<b>&', "c"], several=True)
    text = (tmp_path / "x.xml").read_text(encoding="utf-8")
    assert "<b>" not in text and 'choice="multiple"' in text
