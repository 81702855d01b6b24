"""`focalserve predict` and `focalserve loss`: files in, a table out; offline with a bundle, or against a service."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.errors import InvalidInput
from scripts import box_score
from scripts.asking import AskingFlags, Write, chunks, open_model, output, read_file
from scripts.box_data import BoxDataSet
from scripts.clients import LabelledImage, Model
from scripts.readers import DataSet, OnBadImage, Sample, read_dataset

_BOX_READERS = "scripts.box_readers"
"""Imported when boxes are read: it needs the train extra (YAML, XML), which nothing else here does."""
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


class PredictFlags(AskingFlags):
    """Classify image files, or find boxes in them. Example: focalserve predict photos/*.jpg --bundle artifacts/birds.

    A classifier writes a row per image; a detector a row per detection, in .jsonl a line per image.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve predict")

    files: CliPositionalArg[list[Path]] = Field(description="image files, or folders of them")
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="classifier: classes per image in .jsonl; 5 where left out"
    )
    score_threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="detector: boxes above this score; that of the card where left out"
    )
    max_detections: Annotated[int, Field(ge=1, le=5000)] | None = Field(
        None, description="detector: boxes of one image at most; that of the card where left out"
    )

    @property
    def options(self) -> dict[str, Any]:
        """What is asked of /predict."""
        return self.model_dump(include={"top_k", "score_threshold", "max_detections"}, exclude_none=True)


class LossFlags(AskingFlags):
    """Score the labels of a data set, worst first. Example: focalserve loss photos/ --bundle artifacts/birds.

    A detector scores every given box, and lists what nobody drew. Scores are honest only for images that the model was
    not trained on.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve loss")

    data: CliPositionalArg[Path] = Field(
        description="folder of class folders, CSV or JSONL; for boxes COCO .json, YOLO's or Pascal VOC's folder, or CSV"
    )
    gamma: Annotated[float, Field(ge=0.0)] | None = Field(None, description="focusing; that of the card where left out")
    task: Literal["auto", "multiclass", "multilabel", "binary"] = Field("auto", description="what the labels mean")
    images: Path | None = Field(None, description="boxes: folder of the pictures, where not beside the annotations")
    on_bad_image: OnBadImage = Field("fail", description="images that do not decode: stop, or leave out")
    on_bad_box: Literal["fail", "drop"] = Field("fail", description="boxes that cannot be used: stop, or leave out")
    missing_score: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.3, description="boxes: objects that nobody drew are listed from this score on"
    )
    show: Annotated[int, Field(ge=0)] = Field(10, description="worst labels shown on stderr")

    @property
    def options(self) -> dict[str, Any]:
        """What is asked of /loss."""
        return {} if self.gamma is None else {"gamma": self.gamma}


def predict(argv: Sequence[str]) -> int:
    """Runs `focalserve predict`; 1 where an image could not be answered."""
    flags = PredictFlags.parse(argv)
    files = list(_image_files(flags.files))
    failed = 0
    with open_model(flags) as model, output(flags, _predict_columns(model)) as write:
        for chunk in chunks(files, flags.chunk, "predict"):
            answers = model.predict([(str(file), read_file(file)) for file in chunk], flags.options)
            for file, answer in zip(chunk, answers, strict=True):
                failed += "error" in answer
                _write_prediction(write, str(file), answer, flags.rows_as, model.detects)
    if failed:
        print(f"{failed} of {len(files)} images could not be answered; see the column error", file=sys.stderr)
    return 1 if failed else 0


def _predict_columns(model: Model) -> Sequence[str]:
    return box_score.PREDICT_COLUMNS if model.detects else _PREDICT_COLUMNS


def _write_prediction(write: Write, image: str, answer: dict[str, Any], rows_as: str, detects: bool) -> None:
    if rows_as == "jsonl":
        write({"image": image, **_bare(answer)})
        return
    for row in box_score.prediction_rows(image, answer) if detects else [_prediction_row(image, answer)]:
        write(row)


def loss(argv: Sequence[str]) -> int:
    """Runs `focalserve loss`: writes every label's scores, worst first, and shows the worst."""
    flags = LossFlags.parse(argv)
    with open_model(flags) as model:
        return _loss_of_boxes(flags, model) if model.detects else _loss_of_labels(flags, model)


def _loss_of_labels(flags: LossFlags, model: Model) -> int:
    data = read_dataset(flags.data, task=flags.task, on_bad_image=flags.on_bad_image)
    rows = score_dataset(model, data, flags.chunk, flags.options)
    with output(flags, _LOSS_COLUMNS) as write:
        for row in rows:
            write(row)
    _show_worst(rows, flags.show)
    return 0


def _loss_of_boxes(flags: LossFlags, model: Model) -> int:
    read: Callable[..., BoxDataSet] = importlib.import_module(_BOX_READERS).read_boxes
    data = read(flags.data, images=flags.images, on_bad_image=flags.on_bad_image, on_bad_box=flags.on_bad_box)
    rows = box_score.score_boxes(model, data, flags.chunk, flags.options, flags.missing_score)
    with output(flags, box_score.LOSS_COLUMNS) as write:
        for row in rows:
            write(box_score.flat_row(row) if flags.rows_as == "csv" else row)
    box_score.show_worst(rows, flags.show)
    return 0


def score_dataset(model: Model, data: DataSet, chunk: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores of every label of a data set, the worst first (rank 1), in cleanlab's column names where it has them."""
    rows: list[dict[str, Any]] = []
    for samples in chunks(data.samples, chunk, "loss"):
        images = [LabelledImage(data.relative(one), read_file(one.path), _label(one, data)) for one in samples]
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


def _prediction_row(image: str, answer: dict[str, Any]) -> dict[str, Any]:
    fields = {key: answer.get(key) for key in ("label", "score", "margin", "labels")}
    return {"image": image, **fields, "error": (answer.get("error") or {}).get("detail")}


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


def _show_worst(rows: Sequence[dict[str, Any]], count: int) -> None:
    scored = [row for row in rows if row["label_score"] is not None]
    issues = sum(bool(row["is_label_issue"]) for row in scored)
    print(f"{len(scored)} labels scored, {issues} look wrong", file=sys.stderr)
    for row in scored[:count]:
        better = f" -> {row['suggested_label']}" if row["suggested_label"] else ""
        print(f"  {row['rank']:5d}  quality {row['label_score']:.3f}  loss {row['loss']:.3f}  "
              f"{row['image']}  given {row['given_label']}{better}", file=sys.stderr)  # fmt: skip
