"""The command line as a process: verbs, exit codes, two-line errors, tables."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import FocalserveError
from scripts import demo
from scripts.clients import open_bundle
from scripts.demo import prepare_data, run_verb
from scripts.readers import read_dataset
from scripts.score import score_dataset
from tests.conftest import GARMENTS, noise, png


def focalserve(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).resolve().parents[1],
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures in each of two class folders, one file name that a spreadsheet would compute."""
    for k, name in enumerate(("shirt", "bag")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "photos" / name / f"=p{i}.png").write_bytes(png(noise(seed=10 * k + i)))
    return tmp_path / "photos"


def test_without_a_verb_the_verbs_are_listed_and_the_exit_code_is_2() -> None:
    done = focalserve()
    assert done.returncode == 2
    assert {"train", "serve", "predict", "loss", "info", "doctor", "demo"} <= set(done.stdout.split())


@pytest.mark.parametrize("verb", ["train", "serve", "predict", "loss", "info", "doctor", "demo"])
def test_every_verb_has_help(verb: str) -> None:
    done = focalserve(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"focalserve {verb}" in done.stdout


@pytest.mark.parametrize("arguments", [("predikt",), ("predict", "--nope"), ("info", "nowhere"), ("loss",)])
def test_a_wrong_command_is_two_short_lines_and_no_traceback(arguments: tuple[str, ...]) -> None:
    done = focalserve(*arguments)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 14


def test_predict_writes_a_row_per_file_and_names_the_bad_one(bundle_folder: Path, photos: Path) -> None:
    (photos / "bag" / "bad.png").write_bytes(b"not a picture")
    done = focalserve("predict", photos, "--bundle", bundle_folder)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1
    assert len(rows) == 7
    bad = next(row for row in rows if row["image"].endswith("bad.png"))
    assert "not a JPEG" in bad["error"] and bad["label"] == ""
    assert all(row["label"] in GARMENTS for row in rows if row is not bad)


def test_loss_writes_every_label_worst_first_in_csv_and_jsonl(
    bundle_folder: Path, photos: Path, tmp_path: Path
) -> None:
    for name in ("issues.csv", "issues.jsonl"):
        done = focalserve("loss", photos, "--bundle", bundle_folder, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    table = list(csv.DictReader(io.StringIO((tmp_path / "issues.csv").read_text(encoding="utf-8"))))
    lines = [json.loads(line) for line in (tmp_path / "issues.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in table] == [line["image"] for line in lines]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4, 5, 6]
    scores = [line["label_score"] for line in lines]
    assert scores == sorted(scores)


def test_a_failed_write_leaves_no_half_file(bundle_folder: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "issues.csv").write_text("old", encoding="utf-8")
    (photos / "shirt" / "=p0.png").unlink()
    (photos / "shirt" / "=p0.png").mkdir()
    done = focalserve("predict", photos / "shirt", "--bundle", bundle_folder, "--out", tmp_path / "issues.csv")
    assert done.returncode != 0
    assert (tmp_path / "issues.csv").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.glob(".issues*")) == []


def test_offline_scores_do_not_depend_on_the_chunk(bundle_folder: Path, photos: Path) -> None:
    model = open_bundle(bundle_folder, "cpu", None)
    data = read_dataset(photos)
    whole = score_dataset(model, data, 100, {})
    for chunk in (1, 4):
        for one, other in zip(score_dataset(model, data, chunk, {}), whole, strict=True):
            assert one["image"] == other["image"]
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_info_shows_the_card_and_refuses_an_altered_graph(bundle_folder: Path, tmp_path: Path) -> None:
    assert "shirt" in focalserve("info", bundle_folder).stdout
    assert json.loads(focalserve("info", bundle_folder, "--json").stdout)["labels"] == GARMENTS
    broken = tmp_path / "tiny" / "1"
    broken.mkdir(parents=True)
    (broken / "card.json").write_bytes((bundle_folder / "card.json").read_bytes())
    (broken / "model.onnx").write_bytes((bundle_folder / "model.onnx").read_bytes()[:-1] + b"!")
    done = focalserve("info", broken)
    assert done.returncode == 1
    assert "has changed since export" in done.stderr


def test_doctor_says_what_the_session_runs_on_and_times_it(bundle_folder: Path) -> None:
    done = focalserve("doctor", bundle_folder)
    assert "cores" in done.stdout and "ExecutionProvider" in done.stdout and " ms for one image" in done.stdout


@pytest.mark.slow
def test_the_demo_tells_its_story_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.cli",
            "demo",
            "--no-serve",
            "--epochs",
            "1",
            "--port",
            "0",
            "--folder",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "1000 test images: accuracy" in done.stdout
    assert "5001 labels scored; 251 of them were made wrong on purpose" in done.stdout
    assert done.stdout.count("% (") >= 3


def test_the_demo_prepares_its_data_in_a_relative_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = prepare_data(Path("demo"))
    halves = [(data / name).read_text(encoding="utf-8").splitlines() for name in ("half-a.csv", "half-b.csv")]
    assert sum(len(rows) - 1 for rows in halves) == 5001


@pytest.mark.parametrize(("code", "raised"), [(130, KeyboardInterrupt), (1, FocalserveError), (143, FocalserveError)])
def test_the_demo_ends_with_a_training_that_does(
    code: int, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "focalserve", lambda arguments: code)
    with pytest.raises(raised):
        run_verb("train", "data")
