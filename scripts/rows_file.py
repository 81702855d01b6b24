"""Rows of a model's answers with the labels that were given, from NumPy's .npz, streamed: its size does not matter."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from models.calibration import log_softmax
from models.errors import InvalidInput

_CHUNK_NUMBERS = 2_000_000
_SUM_TOLERANCE = 1e-3
_KINDS = ("logits", "probabilities")
_Chunk = NDArray[np.float64]


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class RowsFile:
    """An .npz file of `logits` or `probabilities` (N, K) float, `labels` (N,) integer, and perhaps `ids` (N,).

    Args:
        path: of the file; np.savez and np.savez_compressed write such.

    Raises:
        InvalidInput: it is no such file: which array is missing or of a shape or kind that cannot be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._zip() as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            members = {info.filename.removesuffix(".npy"): info for info in infos}
            present = [kind for kind in _KINDS if kind in members]
            if len(present) != 1 or "labels" not in members:
                known = ", ".join(sorted(members)) or "nothing"
                raise InvalidInput(f"{path}: needs logits or probabilities, and labels; it holds {known}")
            self.kind = present[0]
            self._has_ids = "ids" in members
        with self._array(self.kind) as (header, _):
            if len(header.shape) != 2 or header.shape[0] < 1 or header.shape[1] < 2:
                raise InvalidInput(
                    f"{path}: {self.kind}: has the shape {header.shape}; it must be (N, K), N >= 1, K >= 2"
                )
            if header.dtype.kind != "f":
                raise InvalidInput(f"{path}: {self.kind}: is of {header.dtype}; floats are needed")
            self.count, self.classes = header.shape

    def labels(self) -> NDArray[np.intp]:
        """The given labels, (N,) class indices.

        Raises:
            InvalidInput: not integers, not N, or not one of the K classes; the first such row is named.
        """
        labels = self._whole("labels")
        if labels.dtype.kind not in "iu":
            raise InvalidInput(f"{self.path}: labels: is of {labels.dtype}; class indices are integers")
        wrong = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if len(wrong):
            row = int(wrong[0])
            raise InvalidInput(
                f"{self.path}: labels: row {row} is {labels[row]}, the classes are 0 to {self.classes - 1}"
                f" ({len(wrong)} such rows)"
            )
        return labels.astype(np.intp)

    def ids(self) -> NDArray[Any] | None:
        """What the rows are called, (N,) text or integers; None where the file does not say.

        Raises:
            InvalidInput: of another kind, or not N.
        """
        if not self._has_ids:
            return None
        ids = self._whole("ids")
        if ids.dtype.kind not in "Uiu":
            raise InvalidInput(f"{self.path}: ids: is of {ids.dtype}; text or integers are needed")
        return ids

    def probabilities(self) -> Iterator[_Chunk]:
        """The rows' probabilities, (n, K) float64, some at a time; of logits the softmax.

        Raises:
            InvalidInput: numbers that are not finite, or no probabilities; the first such row is named.
        """
        size = max(1, _CHUNK_NUMBERS // self.classes)
        with self._array(self.kind) as (header, stream):
            for start in range(0, self.count, size):
                rows = min(size, self.count - start)
                data = _read(stream, rows * self.classes * header.dtype.itemsize)
                chunk = np.frombuffer(data, header.dtype).reshape(rows, self.classes).astype(np.float64)
                self._check(chunk, start)
                yield np.exp(log_softmax(chunk)) if self.kind == "logits" else chunk

    def _check(self, chunk: _Chunk, start: int) -> None:
        odd = ~np.isfinite(chunk).all(axis=1)
        what = "holds a number that is not finite"
        if not odd.any() and self.kind == "probabilities":
            odd = (chunk < 0.0).any(axis=1) | (np.abs(chunk.sum(axis=1) - 1.0) > _SUM_TOLERANCE)
            what = "holds no probabilities that sum to 1"
        if odd.any():
            raise InvalidInput(f"{self.path}: {self.kind}: row {start + int(odd.argmax())} {what}")

    def _whole(self, name: str) -> NDArray[Any]:
        with self._array(name) as (header, stream):
            if header.shape != (self.count,):
                raise InvalidInput(
                    f"{self.path}: {name}: has the shape {header.shape}; {self.kind} has {self.count} rows"
                )
            return np.frombuffer(_read(stream, self.count * header.dtype.itemsize), header.dtype)

    @contextmanager
    def _array(self, name: str) -> Iterator[tuple[_Header, IO[bytes]]]:
        with self._zip() as archive, archive.open(f"{name}.npy") as stream:
            try:
                version = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, by_column, dtype = read(stream)
            except ValueError as error:
                raise InvalidInput(f"{self.path}: {name}: is no NumPy array ({error})") from None
            if dtype.hasobject:
                raise InvalidInput(f"{self.path}: {name}: holds Python objects, which are not read")
            if by_column and len(shape) > 1:
                raise InvalidInput(f"{self.path}: {name}: is stored by column; save np.ascontiguousarray({name})")
            expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if archive.getinfo(f"{name}.npy").file_size - stream.tell() != expected:
                raise InvalidInput(f"{self.path}: {name}: holds more or fewer numbers than its shape {shape} says")
            yield _Header(shape, dtype), stream

    @contextmanager
    def _zip(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InvalidInput(f"{self.path}: is no .npz file, or a damaged one ({error})") from None
        except OSError as error:
            raise InvalidInput(f"{self.path}: cannot be read ({(error.strerror or str(error)).lower()})") from None


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("cut off")
    return data
