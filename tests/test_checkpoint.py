import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import InvalidInput
from scripts.checkpoint import load_checkpoint, locked, previous_of, remove_checkpoints, save_checkpoint


def state(value: float) -> dict[str, Any]:
    return {"model": {"weight": torch.full((1000,), value)}, "progress": {"epoch": 3, "best": None}}


def value_in(loaded: dict[str, Any] | None) -> float:
    assert loaded is not None
    return float(loaded["model"]["weight"][0])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", state(1.0))
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded is not None and loaded["progress"] == {"epoch": 3, "best": None}
    assert value_in(loaded) == 1.0


def test_torch_itself_can_read_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", state(1.0))
    assert value_in(torch.load(tmp_path / "best.pt", weights_only=True)) == 1.0


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "last.pt") is None


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(_: bytes) -> bytes:
    return b""


def fill_with_garbage(data: bytes) -> bytes:
    return os.urandom(len(data))


def flip_one_bit(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [truncate, empty, fill_with_garbage, flip_one_bit])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(1.0))
    save_checkpoint(path, state(2.0))
    path.write_bytes(damage(path.read_bytes()))
    assert value_in(load_checkpoint(path)) == 1.0
    assert "last.pt is damaged" in capsys.readouterr().err
    save_checkpoint(path, state(3.0))
    path.unlink()
    assert value_in(load_checkpoint(path)) == 1.0, "the damaged file must not take the place of the good one before"


def test_a_crash_between_the_two_renames_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(1.0))
    path.rename(previous_of(path))
    assert value_in(load_checkpoint(path)) == 1.0


def test_only_damaged_checkpoints_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"no")
    with pytest.raises(InvalidInput, match="no checkpoint can be read; start afresh with --restart"):
        load_checkpoint(tmp_path / "last.pt")


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hostile-was-run",)


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "last.pt", {"model": Hostile()})
    with pytest.raises(InvalidInput):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "hostile-was-run").exists()


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_keeps_the_old_checkpoint_and_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(1.0))
    before = path.read_bytes()
    code = (
        "import signal, sys, torch; from pathlib import Path; from scripts.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "save_checkpoint(Path(sys.argv[1]), {'model': {'weight': torch.zeros(100_000)}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, preexec_fn=limit_file_size
    )
    assert done.returncode == 1 and "File too large" in done.stderr
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt"]


def test_removing_takes_all_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    for name in ("last.pt", "best.pt"):
        save_checkpoint(tmp_path / name, state(1.0))
        save_checkpoint(tmp_path / name, state(2.0))
    (tmp_path / ".last.pt-abc").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    remove_checkpoints(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_second_training_in_one_folder_is_refused_and_the_first_named(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from scripts.checkpoint import locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    with locked(tmp_path / "run"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert f"another training runs there (process {os.getpid()})" in done.stderr


def test_the_lock_of_a_process_that_has_died_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from scripts.checkpoint import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")]).returncode == -9
    assert (tmp_path / "run" / "lock").read_text().strip() != str(os.getpid())
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").read_text().strip() == str(os.getpid())


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"), locked(tmp_path / "file" / "run"):
        pass
