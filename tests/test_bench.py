"""The benchmark measures what it says, against a service of its own."""

import re
from pathlib import Path

import numpy as np
import pytest

from models.losses import softmax_focal
from scripts import bench, limits
from scripts.limits import best_rate, closed_form


def test_the_closed_form_is_the_loss() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0.0, 3.0, (50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    assert np.allclose(closed_form(logits, labels), softmax_focal(logits.astype(np.float64), labels).values)


def test_a_lucky_moment_is_no_limit() -> None:
    slow, lucky = iter([90.0]), iter([120.0, 100.0])
    assert best_rate([lambda _: next(slow), lambda _: next(lucky)], 1.0) == 100.0


def test_every_kind_of_work_gives_its_rows(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_LOSS_ROWS", 500)
    monkeypatch.setattr(bench, "_LOSS_IMAGES", 20)
    argv = [
        str(bundle_folder),
        "--size",
        "64x64",
        "--seconds",
        "0.3",
        "--rounds",
        "1",
        "--concurrency",
        "2",
        "--stages",
    ]
    assert bench.main(argv) == 0
    said = capsys.readouterr().out
    assert "decode and resize" in said
    rows = {found[1].strip(): found[2].split() for found in re.finditer(r"^(.{40}) (.{10} .*)$", said, re.MULTILINE)}
    names = ["image, concurrency 2", "json tensor, concurrency 2", "bin tensor, concurrency 2"]
    for name in [*names, "the same, service", "loss of 20 images"]:
        speed, ratio = rows[name][:2]
        assert float(speed) > 0.0 and float(ratio) > 0.0, name
    assert rows["json tensor: limit"][1] == "-"


def test_a_detector_is_measured_too(
    detector_artifacts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_LOSS_ROWS", 500)
    monkeypatch.setattr(bench, "_LOSS_PICTURES", 3)
    monkeypatch.setattr(limits, "_BATCHES", (1, 2))
    asked = ["--size", "64x64", "--seconds", "0.3", "--rounds", "1", "--concurrency", "2", "--stages"]
    assert bench.main([str(detector_artifacts), *asked]) == 0
    said = capsys.readouterr().out
    for name in ("image, concurrency 2", "json tensor, concurrency 2", "bin tensor, concurrency 2", "loss of 3 images"):
        row = re.search(rf"^{name} +([\d.]+) +([\d.]+)", said, re.MULTILINE)
        assert row and float(row[1]) > 0.0 and float(row[2]) > 0.0, name
