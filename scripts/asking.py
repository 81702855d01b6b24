"""What `focalserve predict` and `focalserve loss` share: flags, the model that is asked, the table that is written."""

import csv
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TextIO, TypeVar

from pydantic import Field, model_validator
from tqdm import tqdm

from models.cells import neutralize
from models.errors import InvalidInput
from scripts.clients import Model, RemoteModel, open_bundle
from scripts.flags import Flags

Part = TypeVar("Part")
Write = Callable[[dict[str, Any]], object]
"""Writes one row."""


class AskingFlags(Flags):
    """Which model is asked, and where its answers go."""

    bundle: Path = Field(
        Path("artifacts"), description="a bundle, or a folder with one model; used where no URL is given"
    )
    url: str | None = Field(None, description="address of a running service, such as http://127.0.0.1:8000")
    model: str | None = Field(None, description="which model, where there are several")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the bundle runs")
    out: Path | None = Field(None, description="file to write, .csv or .jsonl; stdout where left out")
    format: Literal["csv", "jsonl"] | None = Field(None, description="of the output; by the file's suffix, else csv")
    chunk: Annotated[int, Field(ge=1, le=4096)] = Field(128, description="images asked at once")

    @model_validator(mode="after")
    def _known_suffix(self) -> Self:
        if self.out is not None and self.format is None and self.out.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError("out: the suffix should be .csv or .jsonl, or say --format")
        return self

    @property
    def rows_as(self) -> str:
        """The output format, csv or jsonl."""
        by_suffix = "jsonl" if self.out is not None and self.out.suffix.lower() == ".jsonl" else "csv"
        return self.format or by_suffix


@contextmanager
def open_model(flags: AskingFlags) -> Iterator[Model]:
    """The bundle, or the service, that the flags name."""
    if flags.url is None:
        yield open_bundle(flags.bundle, flags.device, flags.model)
        return
    with RemoteModel(flags.url, flags.model) as remote:
        yield remote


def chunks(parts: Sequence[Part], size: int, what: str) -> Iterator[Sequence[Part]]:
    """The parts, `size` at a time, with a bar on stderr."""
    with tqdm(total=len(parts), desc=what, unit="img", disable=None, file=sys.stderr) as bar:
        for start in range(0, len(parts), size):
            yield parts[start : start + size]
            bar.update(len(parts[start : start + size]))


def read_file(file: Path) -> bytes:
    """A file's bytes.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file}: {(error.strerror or 'cannot be read').lower()}") from None


@contextmanager
def output(flags: AskingFlags, columns: Sequence[str]) -> Iterator[Write]:
    """A function that writes one row; the file appears only when all are written."""
    if flags.out is None:
        yield _writer(sys.stdout, flags.rows_as, columns)
        return
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{flags.out.name}.", dir=flags.out.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            yield _writer(file, flags.rows_as, columns)
        os.replace(draft, flags.out)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _writer(file: TextIO, form: str, columns: Sequence[str]) -> Write:
    if form == "jsonl":
        return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")
    table = csv.writer(file)
    table.writerow(columns)
    return lambda row: table.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return neutralize(value)
    if isinstance(value, Iterable):
        return neutralize("|".join(value))
    return "" if value is None else value
