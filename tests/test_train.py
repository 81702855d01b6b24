import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from models.bundle import Bundle, read_bundle
from models.image import load_input
from models.nets.registry import NETS, build_net
from models.tasks import TASKS
from scripts import train, training
from scripts.checkpoint import save_checkpoint
from scripts.config import TrainConfig, parse_config
from scripts.evaluate import Score
from scripts.interrupts import Interrupts
from scripts.job import build_job, read_parts
from scripts.recipes import use_threads
from tests.pictures import copy_garments, draw_folders, draw_list, quiet_environment

FAST = ["--threads", "1", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folders(tmp_path_factory.mktemp("data") / "pictures")


def train_bundle(data: Path, out: Path, *flags: str) -> Bundle:
    assert train.main([str(data), "--out", str(out), *FAST, *flags]) == 0
    return read_bundle(out / "1")


def answers(bundle: Bundle, files: list[Path]) -> list[tuple[str, ...]]:
    """The predicted labels of image files, by the bundle alone."""
    session = onnxruntime.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    images = np.stack([load_input(file.read_bytes(), bundle.card.input).pixels for file in files])
    logits = np.asarray(session.run(["logits"], {"image": images})[0], np.float64)
    found = TASKS[bundle.card.task].predict(logits, bundle.card)
    named = np.eye(len(bundle.card.labels), dtype=bool)[found.order[:, 0]] if found.above is None else found.above
    return [tuple(bundle.card.labels[k] for k in np.flatnonzero(row)) for row in named]


CLASSES = ["Sneaker", "T-shirt", "Trouser"]
COMMAND = ["--epochs", "4", "--alpha", "class-balanced"]


@dataclass(frozen=True)
class Done:
    """A training of real garments through the command line, in a process of its own."""

    data: Path
    out: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("garments")
    data, out = copy_garments(root / "some", root / "all", CLASSES, 40), root / "artifacts" / "garments"
    command = [sys.executable, "-m", "scripts.train", str(data), "--out", str(out), *FAST, *COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet_environment())
    assert done.returncode == 0, done.stderr
    return Done(data, out, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_command_line_says_what_it_does_and_prints_the_bundle(garments: Done) -> None:
    assert garments.stdout == f"{garments.out / '1'}\n"
    said = garments.stderr
    assert "gamma: 2.0" in said and "imbalance 1.0 : 1" in said
    assert "epoch 4/4: loss" in said and "kept epoch" in said and "torch and ONNX Runtime differ by" in said
    assert "arning" not in said and "Skipping" not in said and "[torch" not in said


@pytest.mark.slow
def test_a_trained_bundle_knows_its_classes(garments: Done) -> None:
    bundle = read_bundle(garments.out / "1")
    files = sorted(garments.data.glob("*/*.png"))
    right = [found == (file.parent.name,) for found, file in zip(answers(bundle, files), files, strict=True)]
    assert sum(right) / len(right) > 0.8


@pytest.mark.slow
def test_the_card_tells_all_that_was_done(garments: Done) -> None:
    card = read_bundle(garments.out / "1").card
    assert (card.name, card.version, card.task, card.labels) == ("garments", "1", "multiclass", CLASSES)
    assert (card.input.height, card.input.width) == (28, 28)
    assert [facts.train_count for facts in card.classes] == [34, 34, 34]
    assert [facts.validation_count for facts in card.classes] == [6, 6, 6]
    assert card.loss.gamma == card.calibration.gamma == 2.0
    assert card.loss.alpha == pytest.approx([1.0, 1.0, 1.0])
    assert card.training["epochs"] == 4 and 1 <= card.training["best_epoch"] <= 4
    assert {"accuracy", "macro_f1", "nll", "ece", "ece_uncalibrated"} <= card.metrics.keys()
    assert card.parity_max_difference <= 1e-4
    assert len(card.data_fingerprint) == 64


@pytest.mark.slow
def test_training_leaves_its_best_and_last_checkpoint(garments: Done) -> None:
    multiclass = garments.out
    assert {"best.pt", "last.pt"} <= {file.name for file in (multiclass / "run").iterdir()}
    best = torch.load(multiclass / "run" / "best.pt", weights_only=True)
    assert best["epoch"] == read_bundle(multiclass / "1").card.training["best_epoch"]


@pytest.mark.slow
def test_a_complete_run_is_not_run_again_by_resume(garments: Done, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(garments.data), "--out", str(garments.out), *FAST, *COMMAND, "--resume"]) == 0
    shown = capsys.readouterr()
    assert "complete already" in shown.err
    assert shown.out == f"{garments.out / '1'}\n"
    assert not (garments.out / "2").exists()


def test_weights_of_another_number_of_classes_are_loaded_but_for_the_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_list(tmp_path / "data", multilabel=True, count=12, val_from=8)
    weights = tmp_path / "best.pt"
    torch.manual_seed(9)
    save_checkpoint(weights, {"model": build_net("small", 3).state_dict(), "epoch": 4})
    config = parse_config([str(data), "--out", str(tmp_path / "m"), "--weights", str(weights)])
    parts = read_parts(config)
    job = build_job(config, parts, torch.device("cpu"))
    assert "fc.weight [3, 96] was not loaded: this model has [2, 96]" in capsys.readouterr().err
    saved = torch.load(weights, weights_only=True)["model"]
    own = job.served.net.state_dict()
    assert all(torch.equal(own[name], saved[name]) for name in own if not name.startswith("fc."))
    prior = parts.counts / len(parts.train)
    assert own["fc.bias"].numpy() == pytest.approx(np.log(prior / (1 - prior)), abs=1e-6)


def test_a_multilabel_list_with_a_split_column_trains_with_sigmoid_focal_loss(tmp_path: Path) -> None:
    data = draw_list(tmp_path / "data", multilabel=True)
    bundle = train_bundle(data, tmp_path / "both", "--epochs", "12", "--alpha", "balanced")
    card = bundle.card
    assert (card.task, card.labels, card.outputs) == ("multilabel", ["bar", "red"], 2)
    assert [facts.validation_count for facts in card.classes] == [6, 6]
    assert card.loss.alpha == [0.5, 0.5]
    assert {"map", "exact_match", "macro_f1"} <= card.metrics.keys()
    found = answers(bundle, [data.parent / f"{k:03d}.png" for k in range(40, 44)])
    assert [set(each) for each in found] == [set(), {"bar"}, {"red"}, {"bar", "red"}]


def test_a_binary_list_trains_one_logit(tmp_path: Path) -> None:
    data = draw_list(tmp_path / "data", multilabel=False)
    bundle = train_bundle(data, tmp_path / "bars", "--epochs", "10", "--alpha", "0.5", "--gamma", "1")
    card = bundle.card
    assert (card.task, card.labels, card.outputs) == ("binary", ["0", "1"], 1)
    assert card.loss.alpha == 0.5
    assert "average_precision" in card.metrics
    assert card.classes[0].decision_threshold == pytest.approx(1 - card.classes[1].decision_threshold)
    files = [data.parent / f"{k:03d}.png" for k in range(40, 44)]
    assert answers(bundle, files) == [("0",), ("1",), ("0",), ("1",)]


def test_a_loss_that_is_no_number_stops_with_the_files_of_its_batch(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(folders), "--out", str(tmp_path / "m"), *FAST, "--lr", "1e30", "--epochs", "3"]) == 1
    shown = capsys.readouterr().err
    assert "error: the loss is" in shown and "try a lower --lr" in shown
    named = [word.strip(",") for word in shown.split() if word.strip(",").endswith(".png")]
    assert len(named) == 8 and all((folders / name).is_file() for name in named)
    for file in (tmp_path / "m" / "run").glob("*.pt"):
        saved = torch.load(file, weights_only=True)["model"]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())
    assert not (tmp_path / "m" / "1").exists()


def test_the_settings_are_said_first_and_can_be_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--print-config", "--gamma", "1.5"]) == 0
    shown = capsys.readouterr()
    assert "gamma: 1.5\n" in shown.out and shown.err == ""


def test_a_dry_run_shows_the_data_and_writes_nothing(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(folders), "--out", str(tmp_path / "m"), *FAST, "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert "51 training and 9 validation images" in shown and "imbalance 1.0 : 1" in shown
    assert "7 batches of (16, 16, 3)" in shown
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--net", "vgg"], "unknown network 'vgg'"),
        (["--alpha", "0.25"], "--alpha with one number is for multilabel and binary"),
        (["--labels", "red,plain"], "unknown label 'barred'"),
        (["--weights", "absent.pt"], "absent.pt cannot be opened"),
    ],
)
def test_bad_input_is_two_lines_and_exit_code_2(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert train.main([str(folders), "--out", str(tmp_path / "m"), *FAST, *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert shown.splitlines()[-1] == "help: focalserve train --help"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_without_a_device_is_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(folders), "--out", str(tmp_path / "m"), "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_training(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m").write_text("a file where the folder should be")
    assert train.main([str(folders), "--out", str(tmp_path / "m"), *FAST]) == 2
    shown = capsys.readouterr().err
    assert "cannot be written" in shown and "epoch" not in shown.replace("epochs:", "")


def test_a_version_is_written_once(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m" / "2").mkdir(parents=True)
    assert train.main([str(folders), "--out", str(tmp_path / "m"), *FAST, "--version", "2"]) == 2
    assert "exists already; a version is written once" in capsys.readouterr().err


def test_the_help_names_every_net() -> None:
    described = TrainConfig.model_fields["net"].description or ""
    assert re.findall(r"[a-z]+[0-9_v]*", described.replace(" or ", " ")) == list(NETS)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_rises_then_follows_its_schedule(schedule: str) -> None:
    config = parse_config(["d", "--out", "o", "--lr", "0.1", "--warmup", "0.2", "--schedule", schedule])
    rates = [training.learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 20) and rates[19] == rates[20] == pytest.approx(0.1)
    assert all(before <= after for before, after in itertools.pairwise(rates[:21]))
    if schedule == "constant":
        assert set(rates[20:]) == {0.1}
    else:
        assert rates[60] == pytest.approx(0.1 * (0.01 + 0.495)) and rates[99] == pytest.approx(0.001, rel=0.1)


def test_the_latest_epoch_as_good_as_the_best_is_kept(folders: Path, tmp_path: Path) -> None:
    config = parse_config([str(folders), "--out", str(tmp_path / "m"), *FAST])
    job = build_job(config, read_parts(config), torch.device("cpu"))
    job.folder.mkdir(parents=True)
    at = training.Progress()
    kept = []
    for score in (0.5, 0.7, 0.66, 0.64, 0.6):
        training.end_epoch(job, at, {"macro_f1": Score(score, 0.05), "nll": Score(1.0, 0.1)}, steps=7)
        kept.append(at.best_epoch)
    assert kept == [1, 2, 3, 3, 3]
    assert (at.best, at.stale, at.epoch) == (0.7, 3, 5)
    assert torch.load(job.folder / "best.pt", weights_only=True)["epoch"] == 3


def test_patience_ends_a_training_that_gets_no_better(folders: Path, tmp_path: Path) -> None:
    config = parse_config([str(folders), "--out", str(tmp_path / "m"), *FAST, "--epochs", "9", "--patience", "2"])
    at = training.Progress(epoch=4, stale=2, best=0.5)
    job = build_job(config, read_parts(config), torch.device("cpu"))
    training.fit(job, at, Interrupts())
    assert at.epoch == 4
    assert json.dumps(at.best) == "0.5" and math.isfinite(at.seconds)


def test_threads_are_as_asked_for_else_omp_num_threads_else_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    use_threads(3)
    use_threads(0)
    assert said == [3]
    monkeypatch.delenv("OMP_NUM_THREADS")
    use_threads(0)
    assert said == [3, len(os.sched_getaffinity(0))]
