"""The model card: what it refuses, and that it comes back as it was written."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from models.bundle import CARD_FILE, read_bundle
from models.card import ModelCard, relative_name
from models.errors import BundleError
from models.image import decode_image, encode_png
from tests.conftest import noise


def card_fields(labels: list[str], task: str = "multiclass", **changes: Any) -> dict[str, Any]:
    """The fields of a small valid card, some of them changed."""
    return {
        "name": "tiny",
        "version": "1",
        "created": "2025-01-01T00:00:00+00:00",
        "task": task,
        "labels": labels,
        "input": {"height": 4, "width": 4},
        "classes": [{"label": label, "train_count": 5, "prior": 0.5} for label in labels],
        "golden": {
            "image_png": base64.b64encode(encode_png(noise(4, 4))).decode(),
            "logits": [0.0] * (1 if task == "binary" else len(labels)),
        },
        **changes,
    }


def parse(fields: dict[str, Any]) -> ModelCard:
    return ModelCard.parse(json.dumps(fields), "tiny/card.json")


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(BundleError) as caught:
        parse(fields)
    return str(caught.value)


def test_a_card_comes_back_as_it_was_written(bundle_folder: Path) -> None:
    card = read_bundle(bundle_folder).card
    assert ModelCard.parse(card.model_dump_json(), "again") == card
    assert ModelCard.parse((bundle_folder / CARD_FILE).read_bytes(), "again") == card
    assert ModelCard.parse(json.dumps(card.model_dump()), "again") == card


def test_a_card_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(card_fields(["a", "b"])).name = "other"


def test_the_golden_image_is_a_png_of_the_inputs_size(bundle_folder: Path) -> None:
    card = read_bundle(bundle_folder).card
    assert decode_image(card.golden.png).shape == (card.input.height, card.input.width, 3)


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "activation"),
    [
        ("multiclass", ["a", "b", "c"], 3, "softmax"),
        ("multilabel", ["a", "b", "c"], 3, "sigmoid"),
        ("binary", ["no", "yes"], 1, "sigmoid"),
    ],
)
def test_the_task_says_how_many_logits_there_are(task: str, labels: list[str], outputs: int, activation: str) -> None:
    card = parse(card_fields(labels, task))
    assert (card.outputs, card.activation) == (outputs, activation)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ([], "flavour"),
        (["input"], "input.flavour"),
        (["classes", 0], "classes.0.flavour"),
        (["golden"], "golden.flavour"),
    ],
)
def test_an_unknown_key_is_refused_by_its_name(place: list[Any], named: str) -> None:
    fields = card_fields(["a", "b"])
    part: Any = fields
    for step in place:
        part = part[step]
    part["flavour"] = "vanilla"
    assert refusal(fields) == f"tiny/card.json: {named}: Extra inputs are not permitted"


@pytest.mark.parametrize("missing", ["name", "version", "task", "labels", "input", "classes", "golden"])
def test_a_missing_key_is_named(missing: str) -> None:
    fields = card_fields(["a", "b"])
    del fields[missing]
    assert refusal(fields) == f"tiny/card.json: {missing}: Field required"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["a", "a"]}, "labels must be distinct"),
        ({"labels": ["a", ""]}, "labels must be distinct and not empty"),
        ({"labels": ["b", "a"]}, "classes must list the labels, in their order"),
        ({"labels": ["a"]}, "a classifier has two labels or more"),
        ({"labels": []}, "labels: "),
        ({"task": "detection"}, "detector goes with the task detection"),
        ({"classes": []}, "classes must list the labels"),
        ({"golden": {"image_png": "", "logits": [0.0]}}, "golden.logits must hold 2 numbers"),
        ({"golden": {"image_png": "?", "logits": [0.0, 0.0]}}, "golden.image_png: Value error, is not base64"),
        ({"loss": {"alpha": [1.0]}}, "loss.alpha must hold 2 weights"),
        ({"quantile_levels": [0.5, 0.1]}, "quantile_levels must ascend"),
        ({"quantile_levels": [0.5, 1.5]}, "quantile_levels.1: "),
        ({"loss": {"gamma": -1.0}}, "loss.gamma: "),
        ({"loss": {"label_smoothing": 1.0}}, "loss.label_smoothing: "),
        ({"calibration": {"temperature": 0.0}}, "calibration.temperature: "),
        ({"input": {"height": 0, "width": 4}}, "input.height: "),
        ({"input": {"height": 4, "width": 4, "resize": "zoom"}}, "input.resize: "),
        ({"input": {"height": 4, "width": 4, "std": [1.0, 0.0, 1.0]}}, "input.std.1: "),
        ({"schema_version": 2}, "schema_version: "),
        ({"task": "regression"}, "task: "),
        ({"name": "../up"}, "name: "),
        ({"name": ".hidden"}, "name: "),
        ({"version": "1/2"}, "version: "),
        ({"sha256": "abc"}, "sha256: "),
    ],
)
def test_an_inconsistent_card_is_refused_and_says_where(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(card_fields(["a", "b"]) | changes)


def test_a_binary_card_has_two_labels() -> None:
    assert "a binary model has exactly two labels" in refusal(card_fields(["a", "b", "c"], "binary"))


@pytest.mark.parametrize("quantiles", [[0.0, 1.0], [float(9 - k) for k in range(10)]])
def test_loss_quantiles_must_ascend_one_per_level(quantiles: list[float]) -> None:
    fields = card_fields(["a", "b"])
    fields["classes"][1]["loss_quantiles"] = quantiles
    assert "loss_quantiles of 'b'" in refusal(fields)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    text = json.dumps(card_fields(["a", "b"], calibration={"temperature": 77.0})).replace("77.0", number)
    with pytest.raises(BundleError, match=r"calibration\.temperature"):
        ModelCard.parse(text, "card")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"^tiny/card\.json: document: "):
        ModelCard.parse(text, "tiny/card.json")


def test_only_the_first_three_mistakes_are_told_and_the_values_are_not() -> None:
    said = refusal(card_fields(["a", "b"], **{f"odd_{k}": "secret" for k in range(5)}))
    assert said.endswith("; and 2 more")
    assert said.count("Extra inputs") == 3
    assert "secret" not in said


def test_a_path_is_told_by_its_last_two_parts() -> None:
    assert relative_name(Path("/home/someone/artifacts/tiny/1")) == "tiny/1"
