"""`focalserve predict` and `focalserve loss` where the model is a detector: rows of boxes."""

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from models.boxes import BoxLabels
from models.errors import FocalserveError, InvalidInput
from scripts.asking import chunks, read_file
from scripts.box_data import BoxDataSet, BoxSample
from scripts.clients import LabelledImage, Model

_PLACE = re.compile(r"inputs\.(\d+)\.(?:boxes\.(\d+)\.)?")
_CORNERS = ("x1", "y1", "x2", "y2")
PREDICT_COLUMNS = ("image", "label", "score", *_CORNERS, "error")
"""Of .csv: a row per detection, and one without a box for a picture without any; `focalserve train` reads it."""
LOSS_COLUMNS = (
    "kind",
    "rank",
    "image",
    "box",
    "id",
    "given_label",
    *_CORNERS,
    "is_label_issue",
    "cause",
    "label_score",
    "loss",
    "best_iou",
    "missing_score",
    "suggested_label",
    *(f"suggested_{corner}" for corner in _CORNERS),
    "error",
)
"""Of .csv: a row per given box (kind box), per object that nobody drew (missing), per bad picture (error)."""


def prediction_rows(image: str, answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of .csv for one picture's answer of /predict."""
    if "error" in answer:
        yield {"image": image, "error": answer["error"].get("detail")}
        return
    for one in answer["boxes"] or [{}]:
        yield {"image": image, "label": one.get("label"), "score": one.get("score"), **_corners("", one.get("box"))}


def score_boxes(
    model: Model, data: BoxDataSet, chunk: int, options: dict[str, Any], least_missing: float
) -> list[dict[str, Any]]:
    """Scores of every given box of a data set, the worst first (rank 1), then what nobody drew, the surest first.

    Args:
        model: a detector.
        data: pictures with boxes.
        chunk: pictures asked at once.
        options: of /loss.
        least_missing: objects that nobody drew are listed from this score on, in [0, 1].

    Returns:
        Rows with `kind` box, missing or error, ranked within their kind; corners are lists, `box` and `suggested_box`.
    """
    boxes, missing, failed = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for samples in chunks(data.samples, chunk, "loss"):
        asked = [
            LabelledImage(data.relative(one), read_file(one.path), wire_boxes(one.boxes, data.labels))
            for one in samples
        ]
        try:
            items = model.loss(asked, options)
        except FocalserveError as error:
            raise _placed(error, samples) from None
        for sample, image, item in zip(samples, asked, items, strict=True):
            if "error" in item:
                failed.append({"kind": "error", "rank": None, "image": image.id, "error": item["error"].get("detail")})
                continue
            boxes += [_box_row(image.id, sample.boxes, one) for one in item["boxes"]]
            missing += [_missing_row(image.id, one) for one in item["missing"] if one["score"] >= least_missing]
    boxes.sort(key=lambda row: (row["label_score"] is None, row["label_score"] or 0.0, row["image"], row["index"]))
    missing.sort(key=lambda row: (-row["missing_score"], row["image"]))
    for rows in (boxes, missing):
        for rank, row in enumerate(rows, start=1):
            row["rank"] = rank if row.get("label_score") is not None or row["kind"] == "missing" else None
    return [*boxes, *missing, *failed]


def wire_boxes(boxes: BoxLabels, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as models.box_labels reads them."""
    rows = zip(boxes.xyxy.tolist(), boxes.labels.tolist(), boxes.ignored.tolist(), boxes.ids, strict=True)
    return [
        {"box": box, "label": labels[label], "iscrowd": ignored} | ({} if name is None else {"id": name})
        for box, label, ignored, name in rows
    ]


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `score_boxes` for .csv: a column per corner, and the box's place in its picture as `box`."""
    corners = _corners("", row.get("box")) | _corners("suggested_", row.get("suggested_box"))
    return {**row, **corners, "box": row.get("index")}


def show_worst(rows: Sequence[dict[str, Any]], count: int) -> None:
    """The worst boxes and the surest missing ones on stderr, and how many there are."""
    scored = [row for row in rows if row["kind"] == "box" and row["label_score"] is not None]
    missing = [row for row in rows if row["kind"] == "missing"]
    issues = sum(row["is_label_issue"] for row in scored)
    print(f"{len(scored)} boxes scored, {issues} look wrong; {len(missing)} objects look forgotten", file=sys.stderr)
    for row in scored[:count]:
        better = f" -> {row['suggested_label']}" if row["suggested_label"] else ""
        print(f"  {row['rank']:5d}  quality {row['label_score']:.3f}  loss {row['loss']:.3f}  {row['image']}  "
              f"box {row['index']}  {row['cause']}  given {row['given_label']}{better}", file=sys.stderr)  # fmt: skip


def _placed(error: FocalserveError, samples: Sequence[BoxSample]) -> FocalserveError:
    """What is wrong with a request, told of the data set's own picture and annotation."""
    found = _PLACE.match(str(error))
    if found is None:
        return error
    sample = samples[int(found[1])]
    name = None if found[2] is None else sample.boxes.ids[int(found[2])]
    where = sample.origin if name is None else f"{sample.origin}, annotation {name}"
    return InvalidInput(f"{where}: {str(error)[found.end() :]}")


def _box_row(image: str, given: BoxLabels, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "box",
        "rank": None,
        "image": image,
        "index": item["index"],
        "id": item.get("id"),
        "given_label": item["label"],
        "box": given.xyxy[item["index"]].tolist(),
        "is_label_issue": item.get("is_issue"),
        "cause": item.get("cause"),
        "causes": item.get("causes"),
        "label_score": item.get("quality"),
        "loss": item.get("loss"),
        "best_iou": item.get("best_iou"),
        "suggested_label": item.get("suggested_label"),
        "suggested_box": item.get("suggested_box"),
        "error": item.get("reason"),
    }


def _missing_row(image: str, item: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "missing",
        "rank": None,
        "image": image,
        "is_label_issue": True,
        "cause": "missing",
        "missing_score": item["score"],
        "suggested_label": item["label"],
        "suggested_box": item["box"],
    }


def _corners(prefix: str, box: Sequence[float] | None) -> dict[str, float]:
    return {} if box is None else {f"{prefix}{name}": value for name, value in zip(_CORNERS, box, strict=True)}
