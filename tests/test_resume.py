import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import train, training
from scripts.checkpoint import load_checkpoint, locked
from scripts.config import parse_config
from scripts.interrupts import Interrupted, Interrupts
from scripts.job import build_job, read_parts
from tests.pictures import draw_folders, quiet_environment

FLAGS = ["--threads", "1", "--device", "cpu", "--batch-size", "4", "--epochs", "8", "--alpha", "balanced"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folders(tmp_path_factory.mktemp("data") / "pictures", per_class=14, side=12)


def fit(data: Path, out: Path, *flags: str) -> dict[str, Any]:
    """Trains in this process, without export; returns last.pt."""
    config = parse_config([str(data), "--out", str(out), *FLAGS, *flags])
    torch.set_num_threads(1)
    with locked(out / "run"):
        job = build_job(config, read_parts(config), torch.device("cpu"))
        training.fit(job, training.restore(job), Interrupts())
    return last(out)


def last(out: Path) -> dict[str, Any]:
    state = load_checkpoint(out / "run" / "last.pt")
    assert state is not None
    return state


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(data, tmp_path_factory.mktemp("reference") / "m")


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two nested values are not the same to the bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [at]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [at]
        return [place for key in one for place in differences(one[key], other[key], f"{at}/{key}")]
    if isinstance(one, list):
        return [p for k, (a, b) in enumerate(zip(one, other, strict=True)) for p in differences(a, b, f"{at}/{k}")]
    return [] if one == other else [at]


def assert_same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert differences(one["model"], other["model"]) == []
    assert differences(one["optimizer"], other["optimizer"]) == []
    for name in ("epoch", "batch", "best", "best_epoch", "stale"):
        assert one["progress"][name] == other["progress"][name], name


def start(data: Path, out: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "scripts.train", str(data), "--out", str(out), *FLAGS, *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=quiet_environment())


def wait_for(process: "subprocess.Popen[str]", line_start: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(line_start):
            return
    raise AssertionError(f"the training ended with {process.wait()} before it said {line_start!r}")


def test_another_seed_trains_other_weights(data: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    assert differences(fit(data, tmp_path / "m", "--seed", "1")["model"], uninterrupted["model"])


@pytest.mark.slow
def test_a_training_ended_by_sigterm_resumes_to_the_bit(
    data: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    process = start(data, tmp_path / "m")
    wait_for(process, "epoch 2/")
    time.sleep(random.random() * 0.1)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGTERM: stopped; to go on, give the same command with --resume" in shown
    assert "Traceback" not in shown
    assert 2 <= last(tmp_path / "m")["progress"]["epoch"] < 8
    assert_same_training(fit(data, tmp_path / "m", "--resume"), uninterrupted)


@pytest.mark.slow
def test_a_training_killed_within_an_epoch_resumes_to_the_bit(
    data: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    process = start(data, tmp_path / "m", "--save-every", "0.0001")
    wait_for(process, "epoch 1/")
    time.sleep(random.random() * 0.2)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    assert last(tmp_path / "m")["progress"]["epoch"] < 8
    assert_same_training(fit(data, tmp_path / "m", "--resume"), uninterrupted)


class StopAfter(Interrupts):
    """Asks to stop after a number of steps, as a signal during a step would."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(signal.SIGINT)


def fit_until(data: Path, out: Path, steps: int) -> dict[str, Any]:
    config = parse_config([str(data), "--out", str(out), *FLAGS, "--resume"])
    job = build_job(config, read_parts(config), torch.device("cpu"))
    with pytest.raises(Interrupted):
        training.fit(job, training.restore(job), StopAfter(steps))
    return last(out)


def test_stops_at_random_steps_change_nothing(data: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "m" / "run").mkdir(parents=True)
    middles = 0
    for steps in random.sample(range(3, 16), 5):
        middles += fit_until(data, tmp_path / "m", steps)["progress"]["batch"] > 0
    assert middles > 0
    assert_same_training(fit(data, tmp_path / "m", "--resume"), uninterrupted)


@pytest.mark.parametrize("damage", [b"garbage", None])
def test_a_damaged_last_checkpoint_falls_back_and_still_ends_at_the_same_weights(
    data: Path, uninterrupted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes | None
) -> None:
    (tmp_path / "m" / "run").mkdir(parents=True)
    fit_until(data, tmp_path / "m", 40)
    path = tmp_path / "m" / "run" / "last.pt"
    path.write_bytes(path.read_bytes()[:-700] if damage is None else damage)
    capsys.readouterr()
    assert_same_training(fit(data, tmp_path / "m", "--resume"), uninterrupted)
    assert "warning: run/last.pt is damaged" in capsys.readouterr().err


def run_main(data: Path, out: Path, *flags: str) -> int:
    return train.main([str(data), "--out", str(out), *FLAGS, *flags])


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_unasked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m" / "run").mkdir(parents=True)
    fit_until(data, tmp_path / "m", 5)
    before = (tmp_path / "m" / "run" / "last.pt").read_bytes()
    assert run_main(data, tmp_path / "m") == 2
    assert "unfinished training; add --resume to go on, --restart to drop it" in capsys.readouterr().err
    assert (tmp_path / "m" / "run" / "last.pt").read_bytes() == before


def test_a_run_is_not_resumed_with_other_settings_or_other_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m" / "run").mkdir(parents=True)
    fit_until(data, tmp_path / "m", 5)
    assert run_main(data, tmp_path / "m", "--resume", "--lr", "0.5") == 2
    assert "cannot resume with other settings: lr (was 0.003, is 0.5)" in capsys.readouterr().err
    other = draw_folders(tmp_path / "pictures", per_class=13, side=12)
    assert run_main(other, tmp_path / "m", "--resume") == 2
    assert "cannot resume with other settings: fingerprint" in capsys.readouterr().err


def test_restart_drops_an_unfinished_run(data: Path, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    (tmp_path / "m" / "run").mkdir(parents=True)
    fit_until(data, tmp_path / "m", 5)
    assert_same_training(fit(data, tmp_path / "m", "--restart"), uninterrupted)


def test_ctrl_c_before_the_first_step_is_one_line_and_exit_code_130(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "read_parts", lambda config: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell put the tests into the background
    assert run_main(data, tmp_path / "m") == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("SIGINT: stopped")
    assert signal.getsignal(signal.SIGINT) is before
