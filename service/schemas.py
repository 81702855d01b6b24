"""What /predict and /loss accept, with the examples that /docs shows. Strict: no coercion, no unknown fields."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.errors import UndecodableImage
from models.task import Floats, Reduction
from service.loss_item import LossItem


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def _as_row(value: Any) -> Floats:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list) or not value or not {type(number) for number in value} <= {int, float}:
        raise ValueError("must be a list of numbers, one per class")
    try:
        row = np.asarray(value, np.float64)
    except OverflowError:
        raise ValueError("holds a number that is too large") from None
    if not np.isfinite(row).all():
        raise ValueError("holds a number that is not finite")
    return row


def _as_rows(value: Any) -> Floats:
    if not isinstance(value, list) or not value or not {type(row) for row in value} <= {list}:
        raise ValueError("must be a list of lists of numbers, one per anchor")
    rows = [_as_row(row) for row in value]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("its rows differ in length")
    return np.stack(rows)


def _as_label(value: Any) -> Any:
    kinds = {type(part) for part in value} if isinstance(value, list) else {type(value)}
    if kinds <= {int} or kinds == {str} or (isinstance(value, list) and kinds <= {int, float}):
        return value
    raise ValueError("a label is an index (whole number), a name, a list of names, or a list of numbers")


Rows = Annotated[Floats, BeforeValidator(_as_rows, json_schema_input_type=list[list[float]])]
Row = Annotated[Floats, BeforeValidator(_as_row, json_schema_input_type=list[float])]
GivenLabel = Annotated[Any, BeforeValidator(_as_label, json_schema_input_type=int | str | list[str] | list[float])]
ItemId = Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$", description="comes back with the answer")]
ImageText = Annotated[str, Field(description="the encoded file (JPEG, PNG, WebP, BMP) in base64")]


class PredictInput(_Wire):
    """One image."""

    id: ItemId | None = None
    image: ImageText


class PredictOptions(_Wire):
    """What is answered, and by which model."""

    model: str | None = Field(None, description="which model; the default one where left out")
    top_k: Annotated[int, Field(ge=1, le=1000, description="of a classifier: how many classes are listed")] = 5
    score_threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="of a detector: detections above this score; the card's where left out"
    )
    iou_threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="of a detector: of two of a class that overlap by more, the better one stays"
    )
    max_detections: Annotated[int, Field(ge=1, le=5000)] | None = Field(
        None, description="of a detector: detections of one image at most"
    )


class PredictRequest(PredictOptions):
    """Images to classify."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": [{"id": "a", "image": "iVBORw0KGgo..."}], "top_k": 3}]}
    )

    inputs: Annotated[list[PredictInput], Field(min_length=1)]


class LossInput(_Wire):
    """One given label with exactly one of: an image, logits, probabilities.

    For a detector: an image's given boxes, with the image or with `cls_logits` and `box_deltas`.
    """

    id: ItemId | None = None
    image: ImageText | None = None
    logits: Row | None = None
    probabilities: Row | None = None
    label: GivenLabel | None = None
    boxes: list[dict[str, Any]] | None = Field(
        None,
        description="given boxes, pixels of the image as it is looked at: box [x1, y1, x2, y2], label, and perhaps "
        "id and iscrowd",
        examples=[[{"box": [12, 30, 58, 96], "label": "Bag", "id": 7}]],
    )
    cls_logits: Rows | None = Field(None, description="[A, K], the graph's output; boxes are then in input pixels")
    box_deltas: Rows | None = Field(None, description="[A, 4], the graph's output")

    def item(self) -> LossItem:
        """The same without its form."""
        rest = self.id, self.label, self.boxes, self.image
        if self.probabilities is not None:
            return LossItem(*rest, self.probabilities, "probabilities")
        item = LossItem(*rest, cls_logits=self.cls_logits, box_deltas=self.box_deltas)
        return item if self.logits is None else item._replace(row=self.logits)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.label is None) == (self.boxes is None):
            raise ValueError("give exactly one of label, boxes")
        if (self.cls_logits is None) != (self.box_deltas is None):
            raise ValueError("cls_logits and box_deltas go together")
        raw = self.cls_logits if self.boxes is not None else self.logits
        if sum(part is not None for part in (self.image, raw, self.probabilities)) != 1:
            names = "image, logits, probabilities" if self.boxes is None else "image, cls_logits with box_deltas"
            raise ValueError(f"give exactly one of {names}")
        return self


class LossOptions(_Wire):
    """How the labels are scored. What is left out comes from the model's card."""

    model: str | None = Field(None, description="which model; the default one where left out")
    gamma: Annotated[float, Field(ge=0.0, le=1e3)] | None = Field(
        None, description="focusing parameter; 0: cross-entropy"
    )
    alpha: float | list[float] | None = Field(
        None, description="class weights of the loss: a number in [0, 1] for sigmoid, one per class for softmax"
    )
    alpha_mode: Literal["uniform"] | None = Field(None, description="lets one alpha multiply every class of a softmax")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    ignore_index: int | None = Field(None, ge=-(2**63), lt=2**63, description="labels of this index are not scored")
    reduction: Reduction = "mean"
    source: Literal["image", "logits", "probabilities"] | None = Field(
        None, alias="from", description="what every item must hold; an item with anything else is refused"
    )
    activation: Literal["softmax", "sigmoid"] | None = Field(
        None,
        description="for rows of another model: how they become probabilities; any number of classes, uncalibrated",
    )
    max_missing: Annotated[int, Field(ge=0, le=5000)] = Field(
        100, description="of a detector: objects that nobody drew, listed per image at most"
    )
    objectlab: bool = Field(False, description="of a detector: also the scores of ObjectLab, to compare")
    return_gradient: bool = Field(False, description="also the gradient of the reduced loss with respect to the logits")

    @model_validator(mode="after")
    def _known_alpha(self) -> Self:
        weights = self.alpha if isinstance(self.alpha, list) else [self.alpha or 0.0]
        if any(weight < 0.0 for weight in weights):
            raise ValueError("alpha must not be negative")
        return self


class LossRequest(LossOptions):
    """Given labels to score: as a list of items, or as columns (`logits` or `probabilities`, with `labels`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": [{"id": "a", "image": "iVBORw0KGgo...", "label": "Bag"}]},
                {
                    "logits": [[2.5, -1.0, 0.3], [0.1, 0.2, 3.0]],
                    "labels": [0, 1],
                    "activation": "softmax",
                    "gamma": 2.0,
                },
            ]
        }
    )

    inputs: Annotated[list[LossInput], Field(min_length=1)] | None = Field(
        None, validation_alias=AliasChoices("inputs", "items")
    )
    logits: Annotated[list[Row], Field(min_length=1)] | None = None
    probabilities: Annotated[list[Row], Field(min_length=1)] | None = None
    labels: list[GivenLabel] | None = None
    ids: list[ItemId] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        rows = self.logits if self.logits is not None else self.probabilities
        if sum(part is not None for part in (self.inputs, self.logits, self.probabilities)) != 1:
            raise ValueError("give exactly one of inputs, logits, probabilities")
        if rows is None:
            if self.labels is not None or self.ids is not None:
                raise ValueError("labels and ids go with logits or probabilities; an item of inputs has its own")
        elif self.labels is None or len(self.labels) != len(rows):
            raise ValueError(f"{len(rows)} rows need {len(rows)} labels, {len(self.labels or [])} were given")
        elif self.ids is not None and len(self.ids) != len(rows):
            raise ValueError(f"{len(rows)} rows need {len(rows)} ids, {len(self.ids)} were given")
        return self

    def items(self) -> list[LossItem]:
        """Either form as a list of items."""
        if self.inputs is not None:
            return [one.item() for one in self.inputs]
        rows = self.logits if self.logits is not None else self.probabilities or []
        kind: Literal["logits", "probabilities"] = "logits" if self.logits is not None else "probabilities"
        ids: Sequence[str | None] = self.ids or [None] * len(rows)
        columns = zip(ids, rows, self.labels or [], strict=True)
        return [LossItem(name, label, row=row, kind=kind) for name, row, label in columns]


class AuditOptions(_Wire):
    """What an audit is of."""

    model: str | None = None
    name: ItemId | None = None
    activation: Literal["softmax", "sigmoid"] | None = None


def decode_base64(text: str) -> bytes:
    """The bytes of an image given as base64.

    Raises:
        UndecodableImage: not base64 (a data: URI or an address is not either).
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UndecodableImage("image is not plain base64 (no data: URI, no address, no line breaks)") from None
