"""`focalserve predict` and `focalserve loss`: files in, a table out; offline with a bundle, or against a service."""

import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TextIO, TypeVar

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from tqdm import tqdm

from models.cells import neutralize
from models.errors import InvalidInput
from scripts.clients import LabelledImage, LocalModel, Model, RemoteModel
from scripts.flags import Flags
from scripts.readers import DataSet, Sample, read_dataset

Part = TypeVar("Part")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_PREDICT_COLUMNS = ("image", "label", "score", "margin", "labels", "error")
_LOSS_COLUMNS = (
    "rank",
    "image",
    "given_label",
    "suggested_label",
    "is_label_issue",
    "label_score",
    "loss",
    "p_given",
    "margin",
    "error",
)


class _Asking(Flags):
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


class PredictFlags(_Asking):
    """Classify image files. Example: focalserve predict photos/*.jpg --bundle artifacts/birds."""

    model_config = SettingsConfigDict(cli_prog_name="focalserve predict")

    files: CliPositionalArg[list[Path]] = Field(description="image files, or folders of them")
    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="classes per image in .jsonl")


class LossFlags(_Asking):
    """Score the labels of a data set, worst first. Example: focalserve loss photos/ --bundle artifacts/birds.

    Scores are honest only for images that the model was not trained on.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve loss")

    data: CliPositionalArg[Path] = Field(description="folder of class folders, CSV or JSONL")
    gamma: Annotated[float, Field(ge=0.0)] | None = Field(None, description="focusing; that of the card where left out")
    task: Literal["auto", "multiclass", "multilabel", "binary"] = Field("auto", description="what the labels mean")
    on_bad_image: Literal["fail", "skip"] = Field("fail", description="images that do not decode: stop, or leave out")
    show: Annotated[int, Field(ge=0)] = Field(10, description="worst labels shown on stderr")


def predict(argv: Sequence[str]) -> int:
    """Runs `focalserve predict`; 1 where an image could not be answered."""
    flags = PredictFlags.parse(argv)
    files = list(_image_files(flags.files))
    failed = 0
    with _open_model(flags) as model, _output(flags, _PREDICT_COLUMNS) as write:
        for chunk in _chunks(files, flags.chunk, "predict"):
            answers = model.predict([(str(file), _read(file)) for file in chunk], flags.top_k)
            for file, answer in zip(chunk, answers, strict=True):
                failed += "error" in answer
                write(
                    _prediction_row(file, answer) if flags.rows_as == "csv" else {"image": str(file), **_bare(answer)}
                )
    if failed:
        print(f"{failed} of {len(files)} images could not be answered; see the column error", file=sys.stderr)
    return 1 if failed else 0


def loss(argv: Sequence[str]) -> int:
    """Runs `focalserve loss`: writes every label's scores, worst first, and shows the worst."""
    flags = LossFlags.parse(argv)
    data = read_dataset(flags.data, task=flags.task, on_bad_image=flags.on_bad_image)
    with _open_model(flags) as model:
        rows = score_dataset(model, data, flags.chunk, {} if flags.gamma is None else {"gamma": flags.gamma})
    with _output(flags, _LOSS_COLUMNS) as write:
        for row in rows:
            write(row)
    _show_worst(rows, flags.show)
    return 0


def score_dataset(model: Model, data: DataSet, chunk: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores of every label of a data set, the worst first (rank 1), in cleanlab's column names where it has them."""
    rows: list[dict[str, Any]] = []
    for samples in _chunks(data.samples, chunk, "loss"):
        images = [LabelledImage(data.relative(one), _read(one.path), _label(one, data)) for one in samples]
        for image, item in zip(images, model.loss(images, options), strict=True):
            rows.append(_loss_row(image, item))
    rows.sort(key=lambda row: (row["label_score"] is None, row["label_score"] or 0.0, row["image"]))
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank if row["label_score"] is not None else None
    return rows


def _label(sample: Sample, data: DataSet) -> str | list[str]:
    names = [data.labels[k] for k in sample.classes]
    return names if data.task == "multilabel" else names[0]


def _loss_row(image: LabelledImage, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "rank": None,
        "image": image.id,
        "given_label": image.label,
        "suggested_label": item.get("suggested_label"),
        "is_label_issue": item.get("is_issue"),
        "label_score": item.get("quality"),
        "loss": item.get("loss"),
        "p_given": item.get("p_given"),
        "margin": item.get("margin"),
        "error": (item.get("error") or {}).get("detail"),
    }


def _prediction_row(file: Path, answer: dict[str, Any]) -> dict[str, Any]:
    fields = {key: answer.get(key) for key in ("label", "score", "margin", "labels")}
    return {"image": str(file), **fields, "error": (answer.get("error") or {}).get("detail")}


def _bare(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("id", "index")}


def _image_files(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
            if not inside:
                raise InvalidInput(f"{path}: holds no image (JPEG, PNG, WebP, BMP)")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise InvalidInput(f"{path}: there is no such file")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file}: {(error.strerror or 'cannot be read').lower()}") from None


@contextmanager
def _open_model(flags: _Asking) -> Iterator[Model]:
    if flags.url is None:
        yield LocalModel(flags.bundle, flags.device, flags.model)
        return
    with RemoteModel(flags.url, flags.model) as remote:
        yield remote


def _chunks(parts: Sequence[Part], size: int, what: str) -> Iterator[Sequence[Part]]:
    with tqdm(total=len(parts), desc=what, unit="img", disable=None, file=sys.stderr) as bar:
        for start in range(0, len(parts), size):
            yield parts[start : start + size]
            bar.update(len(parts[start : start + size]))


@contextmanager
def _output(flags: _Asking, columns: Sequence[str]) -> Iterator[Any]:
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


def _writer(file: TextIO, form: str, columns: Sequence[str]) -> Any:
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


def _show_worst(rows: Sequence[dict[str, Any]], count: int) -> None:
    scored = [row for row in rows if row["label_score"] is not None]
    issues = sum(bool(row["is_label_issue"]) for row in scored)
    print(f"{len(scored)} labels scored, {issues} look wrong", file=sys.stderr)
    for row in scored[:count]:
        better = f" -> {row['suggested_label']}" if row["suggested_label"] else ""
        print(f"  {row['rank']:5d}  quality {row['label_score']:.3f}  loss {row['loss']:.3f}  "
              f"{row['image']}  given {row['given_label']}{better}", file=sys.stderr)  # fmt: skip
