"""The folder of a training run, OUT/run: its lock, and checkpoints that are written whole or not at all.

A checkpoint is a file of torch.save with the SHA-256 of its bytes behind it, which torch.load does not mind. Before
it is replaced it becomes NAME.previous.pt, to which `load_checkpoint` falls back.
"""

import fcntl
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from models.card import relative_name
from models.errors import InvalidInput

LAST, BEST = "last.pt", "best.pt"
_MARK = b"\nfocalserve sha256 "
_TRAILER = len(_MARK) + 64


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint: to another name, to the disk, then renamed; the one before is kept as the previous.

    Args:
        path: NAME.pt in a folder that exists.
        state: tensors and plain values.

    Raises:
        OSError: it could not be written, such as on a full disk; the checkpoint that was there is as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.write(_MARK + hashlib.sha256(payload).hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(previous_of(path))
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint, or with a warning on stderr the previous one where it is damaged.

    Returns:
        What was saved; None where there is neither.

    Raises:
        InvalidInput: there are some, but none can be read.
    """
    found = [candidate for candidate in (path, previous_of(path)) if candidate.exists()]
    for candidate in found:
        try:
            return _read(candidate)
        except Exception as error:  # torch.load raises a different one for every kind of damage
            fault = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"warning: {relative_name(candidate)} is damaged ({fault}); set aside", file=sys.stderr)
            # Else the next save would make the damaged one the previous, in place of the good one.
            with suppress(OSError):
                candidate.replace(candidate.with_suffix(".damaged"))
    if found:
        raise InvalidInput(f"{relative_name(path)}: no checkpoint can be read; start afresh with --restart")
    return None


def previous_of(path: Path) -> Path:
    """Where the checkpoint before is kept: NAME.previous.pt."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run and what an interrupted writer left."""
    for path in (folder / LAST, folder / BEST):
        for stale in (path, previous_of(path), *folder.glob(f".{path.name}-*")):
            stale.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run's folder, which is made where absent. A lock left by a process that has died holds nobody up.

    Raises:
        InvalidInput: another training holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{folder}: cannot be written ({(error.strerror or str(error)).lower()})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InvalidInput(f"{relative_name(folder)}: another training runs there (process {owner})") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    payload, trailer = data[:-_TRAILER], data[-_TRAILER:]
    if not trailer.startswith(_MARK):
        raise ValueError("cut off, or not a checkpoint")
    if trailer[len(_MARK) :] != hashlib.sha256(payload).hexdigest().encode():
        raise ValueError("its SHA-256 is another")
    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("not a checkpoint")
    return state


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
