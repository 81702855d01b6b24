"""`focalserve predict`, `loss`, `info`, `doctor` on a detector: the rows are what models.detect says of the boxes."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.errors import BundleError, FocalserveError, InvalidInput
from scripts import score
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_readers import read_boxes
from scripts.box_score import score_boxes, wire_boxes
from scripts.clients import RemoteModel, choose_bundle, open_bundle
from scripts.coco import write_coco
from scripts.demo import free_port, service
from scripts.doctor import main as doctor
from scripts.info import main as info
from tests.conftest import noise, png
from tests.fake_detector import boxes_of
from tests.serving import write_linear

NAMES = ("tops", "trouser", "dress")


@pytest.fixture(scope="module")
def bundle(detector_artifacts: Path) -> Path:
    return detector_artifacts / "scenes" / "1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file with three pictures: two boxes, a crowd beside a box, none."""
    root = tmp_path_factory.mktemp("boxes")
    boxes = [
        boxes_of([[5, 5, 60, 70], [70, 20, 120, 88]], [0, 2]),
        boxes_of([[0, 0, 90, 90], [10, 10, 30, 36]], [1, 0], [True, False]),
        boxes_of([], []),
    ]
    samples = []
    for k, own in enumerate(boxes):
        path = root / "images" / f"={k}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(np.kron(noise(16, 16, k), np.ones((8, 8, 1), np.uint8))))
        samples.append(BoxSample(path, own, path.name, 128, 128))
    write_coco(root / "boxes.json", BoxDataSet(root, NAMES, tuple(samples)))
    return root / "boxes.json"


@pytest.fixture(scope="module")
def url(detector_artifacts: Path) -> Iterator[str]:
    with service(detector_artifacts, free_port(0), "scenes") as (_, address):
        yield address


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predict_writes_a_row_per_detection_which_the_reader_of_boxes_reads(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = data.parent / "images"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert score.predict([str(pictures), str(tmp_path / "bad.png"), "--bundle", str(bundle), "--max-detections", "4"])
    rows = table(capsys.readouterr().out)
    assert [row["error"] != "" for row in rows] == [False] * (len(rows) - 1) + [True]
    found = tmp_path / "found.csv"
    assert score.predict([str(pictures), "--bundle", str(bundle), "--max-detections", "4", "--out", str(found)]) == 0
    read = read_boxes(found, labels=NAMES, images=pictures, progress=False)
    asked = open_bundle(bundle, "cpu", None).predict(
        [(str(one.path), one.path.read_bytes()) for one in read.samples], {"max_detections": 4}
    )
    for sample, answer in zip(read.samples, asked, strict=True):
        assert np.allclose(sample.boxes.xyxy, [one["box"] for one in answer["boxes"]], atol=1e-3)
        assert 1 <= len(sample.boxes) <= 4


def test_predict_in_jsonl_has_a_line_per_picture(bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--bundle", str(bundle), "--format", "jsonl", "--score-threshold", "1"]
    assert score.predict([str(data.parent / "images"), *asked]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["width"], line["height"], line["boxes"]) for line in lines] == [(128, 128, [])] * 3


def test_an_option_of_a_classifier_is_refused(bundle: Path, data: Path) -> None:
    with pytest.raises(FocalserveError, match="top_k"):
        score.predict([str(data.parent / "images"), "--bundle", str(bundle), "--top-k", "3"])


def test_loss_ranks_every_box_then_what_is_missing(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(data), "--bundle", str(bundle), "--missing-score", "0.2"]
    assert score.loss([*asked, "--out", str(tmp_path / "issues.csv")]) == 0
    assert "3 boxes scored" in capsys.readouterr().err
    assert score.loss([*asked, "--out", str(tmp_path / "issues.jsonl")]) == 0
    rows = table((tmp_path / "issues.csv").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (tmp_path / "issues.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["kind"] for row in rows] == [line["kind"] for line in lines]
    boxes = [row for row in rows if row["kind"] == "box"]
    assert [row["rank"] for row in boxes] == ["1", "2", "3", ""]
    assert boxes[3]["error"] == "ignored: a crowd" and boxes[3]["given_label"] == "trouser"
    scores = [float(row["label_score"]) for row in boxes[:3]]
    assert scores == sorted(scores)
    assert all(row["image"].startswith("'=") or "/" in row["image"] for row in rows)
    given = {(row["given_label"], float(row["x1"]), float(row["y2"])) for row in boxes}
    assert given == {("tops", 5, 70), ("dress", 70, 88), ("trouser", 0, 90), ("tops", 10, 36)}
    missing = [row for row in rows if row["kind"] == "missing"]
    assert missing and {row["cause"] for row in missing} == {"missing"}
    found = [float(row["missing_score"]) for row in missing]
    assert found == sorted(found, reverse=True) and found[-1] >= 0.2
    assert all(float(row["suggested_x1"]) < float(row["suggested_x2"]) for row in missing)


def test_a_service_says_what_the_bundle_says(bundle: Path, data: Path, url: str) -> None:
    read = read_boxes(data, progress=False)
    local = score_boxes(open_bundle(bundle, "cpu", None), read, 2, {"gamma": 1.0}, 0.2)
    with RemoteModel(url, None) as model:
        assert model.detects
        remote = score_boxes(model, read, 3, {"gamma": 1.0}, 0.2)
    with RemoteModel(url, "absent") as absent, pytest.raises(InvalidInput, match="no model of that name"):
        absent.predict([("a", png(noise()))], {})
    assert [row["kind"] for row in remote] == [row["kind"] for row in local]
    for one, other in zip(remote, local, strict=True):
        assert (one["image"], one["cause"], one["rank"]) == (other["image"], other["cause"], other["rank"])
        for name in ("label_score", "loss", "missing_score"):
            assert (one.get(name) is None) == (other.get(name) is None)
            assert (one.get(name) or 0.0) == pytest.approx(other.get(name) or 0.0, rel=1e-4)


def test_the_loss_of_a_box_follows_gamma(bundle: Path, data: Path) -> None:
    model, read = open_bundle(bundle, "cpu", None), read_boxes(data, progress=False)
    flat, steep = (
        {
            row["index"]: row["loss"]
            for row in score_boxes(model, read, 8, {"gamma": gamma}, 1.0)
            if row["kind"] == "box"
        }
        for gamma in (0.0, 4.0)
    )
    assert all(flat[k] > steep[k] for k in flat if flat[k] is not None)


def test_a_picture_that_cannot_be_scored_is_a_row_of_its_own(bundle: Path, data: Path) -> None:
    read = read_boxes(data, progress=False)
    read.samples[2].path.write_bytes(b"broken since")
    rows = score_boxes(open_bundle(bundle, "cpu", None), read, 8, {}, 0.5)
    assert rows[-1]["kind"] == "error" and rows[-1]["image"].endswith("=2.png") and rows[-1]["error"]
    assert sum(row["kind"] == "box" for row in rows) == 4


def test_boxes_go_to_the_service_and_back_unchanged() -> None:
    own = boxes_of([[1.25, 2, 3, 4.5]], [2], [True])
    assert wire_boxes(own, NAMES) == [{"box": [1.25, 2.0, 3.0, 4.5], "label": "dress", "iscrowd": True}]


def test_info_and_doctor_know_detectors(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info([str(bundle)]) == 0
    told = capsys.readouterr().out
    assert "detection, 3 labels" in told and "boxes" in told and "at stride 8, " in told and "trouser" in told
    doctor([str(bundle)])
    assert "scenes version 1 on " in capsys.readouterr().out


def test_the_newest_bundle_is_chosen_and_several_models_need_a_name(detector_artifacts: Path, tmp_path: Path) -> None:
    write_linear(tmp_path, version="9")
    write_linear(tmp_path, version="10")
    assert choose_bundle(tmp_path, None) == tmp_path / "linear" / "10"
    assert choose_bundle(tmp_path / "linear" / "9", None) == tmp_path / "linear" / "9"
    (tmp_path / "scenes").symlink_to(detector_artifacts / "scenes")
    (tmp_path / "loose.onnx").write_bytes(b"no bundle")
    with pytest.raises(BundleError, match="--model: linear, scenes"):
        choose_bundle(tmp_path, None)
    assert choose_bundle(tmp_path, "scenes").name == "1"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="there is no bundle"):
        choose_bundle(tmp_path / "empty", None)


def test_a_label_that_the_model_does_not_know_is_told_of_the_annotation(data: Path, bundle: Path) -> None:
    document = json.loads(data.read_text())
    document["categories"][2]["name"] = "hat"
    other = data.with_name("hats.json")
    other.write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match=r"^hats\.json: image 1, annotation 2: label: the model has no label"):
        score_boxes(
            open_bundle(bundle, "cpu", None), read_boxes(other, on_bad_image="skip", progress=False), 8, {}, 0.3
        )
