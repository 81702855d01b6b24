import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import InvalidInput
from service.__main__ import EXIT_USAGE, main
from service.settings import Settings, load_settings, usable_cores


def test_defaults_are_loopback_and_bounded() -> None:
    settings = load_settings([])
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 8000, "auto")
    assert settings.models == Path("artifacts")
    assert settings.max_batch == 32 and settings.queue_size == 256 and settings.max_wait_ms == 0.0


def test_flags_come_before_variables_and_variables_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCALSERVE_PORT", "9001")
    monkeypatch.setenv("FOCALSERVE_MAX_BATCH", "7")
    monkeypatch.setenv("FOCALSERVE_MODELS", "from-environment")
    settings = load_settings(["--port", "9002"])
    assert (settings.port, settings.max_batch, settings.queue_size) == (9002, 7, 256)
    assert settings.models == Path("from-environment")
    assert load_settings(["from-flag"]).models == Path("from-flag")


def test_every_field_is_a_flag_with_dashes_and_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert name == "models" or "--" + name.replace("_", "-") in said


@pytest.mark.parametrize("name", ["FOCALSERVE_PROT", "FOCALSERVE_MAXBATCH", "focalserve_devise"])
def test_a_misspelt_variable_is_refused_and_named(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"unknown setting {name}"):
        load_settings([], {name: "1", "PATH": "x", "FOCALSERVE_PORT": "1"})


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--prot", "1"], "--prot"),
        (["--port", "x"], "port"),
        (["--port", "70000"], "port"),
        (["--device", "tpu"], "device"),
        (["--max-batch", "0"], "max_batch"),
        (["--max-wait-ms", "-1"], "max_wait_ms"),
        (["--queue-size", "1.5"], "queue_size"),
        (["one", "two"], "two"),
        (["--body-timeout", "nan"], "body_timeout"),
    ],
)
def test_a_wrong_flag_is_refused_and_named(argv: list[str], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        load_settings(argv)


def test_a_wrong_variable_is_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCALSERVE_PORT", "many")
    with pytest.raises(InvalidInput, match="port"):
        load_settings([])


def test_a_wrong_setting_ends_with_two_lines_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prot", "1"]) == EXIT_USAGE == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 2
    assert "--prot" in said.err.splitlines()[0] and "--help" in said.err.splitlines()[1]


def test_the_process_ends_with_code_2_for_a_misspelt_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env={**os.environ, "FOCALSERVE_PROT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "FOCALSERVE_PROT" in done.stderr.splitlines()[0]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings([]).port = 1


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", 10_000), ("100000 100000", 1), ("50000 100000", 1), ("nonsense", 10_000)]
)
def test_the_containers_quota_cuts_the_cores(tmp_path: Path, quota: str, most: int) -> None:
    write(tmp_path, "cpu.max", quota + "\n")
    assert 1 <= usable_cores(tmp_path) <= most


def test_the_quota_of_the_older_control_groups_counts_too(tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    write(tmp_path, "cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores(tmp_path) == everything
    write(tmp_path, "cpu/cpu.cfs_quota_us", "150000\n")
    assert usable_cores(tmp_path) == 1
    write(tmp_path, "cpu.max", f"{10_000 * 100_000} 100000")
    assert usable_cores(tmp_path) == everything
