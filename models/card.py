"""The model card: everything needed to use a model that is not in its graph. Stored as card.json beside model.onnx."""

import base64
import binascii
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from models.card_part import CardPart, Probability
from models.detector_spec import DetectorSpec
from models.errors import BundleError

TaskName = Literal["multiclass", "multilabel", "binary", "detection"]
Alpha = float | list[float] | None


class ImageInput(CardPart):
    """How an encoded image becomes the graph's input `image`, uint8 (N, height, width, 3), RGB, 0-255.

    Attributes:
        height: rows of the input, pixels.
        width: columns of the input, pixels.
        resize: `stretch` to exactly (height, width); `letterbox` keeps the aspect ratio and pads with grey 114;
            `center_crop` scales the shorter side to the input over `crop_fraction` and cuts out the centre.
        crop_fraction: share of the scaled picture that `center_crop` keeps (torchvision's 224 of 256 is 0.875).
        draft: JPEG is decoded at a half, a quarter or an eighth of its size where no side gets smaller than it is
            scaled to (faster; other pixels, by about as much as another resampling filter would give).
        mean: per-channel mean of the values scaled to 0-1; the graph itself subtracts it.
        std: per-channel standard deviation of the values scaled to 0-1; the graph itself divides by it.
    """

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    resize: Literal["stretch", "letterbox", "center_crop"] = "stretch"
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.875
    draft: bool = True
    mean: list[float] = Field(default=[0.485, 0.456, 0.406], min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0.0)]] = Field(default=[0.229, 0.224, 0.225], min_length=3, max_length=3)


class LossSpec(CardPart):
    """The focal loss that the model was trained with, and that `/loss` computes unless told otherwise."""

    gamma: Annotated[float, Field(ge=0.0)] = 2.0
    alpha: Alpha = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Calibration(CardPart):
    """From logits to calibrated probabilities: the inverse of focal loss's bias (`gamma`), then a temperature.

    Attributes:
        gamma: the gamma whose distortion is undone first (0 = none); Charoenphakdee et al. 2021, Psi.
        temperature: divides the log-probabilities; fitted on validation by cross-entropy.
    """

    gamma: Annotated[float, Field(ge=0.0)] = 0.0
    temperature: Annotated[float, Field(gt=0.0)] = 1.0


class Estimate(CardPart):
    """A metric with its 95 % confidence interval (bootstrap over images)."""

    value: float
    low: float
    high: float


class ClassFacts(CardPart):
    """What was measured of one class on the validation part.

    Attributes:
        label: the class name.
        train_count: training images (for sigmoid tasks: positives) of the class.
        prior: share of the training images that carry the class.
        decision_threshold: sigmoid tasks: predicted present when its calibrated probability reaches this.
        confidence_threshold: mean calibrated probability of the class over validation images labelled with it
            (confident learning, Northcutt et al. 2021); what `is_issue` compares with.
        precision: of predictions of the class; None where there were none.
        recall: of images of the class; None where there were none.
        f1: harmonic mean of both; None where undefined.
        validation_count: validation images of the class.
        ap: detectors: average precision over COCO's ten IoUs; None without boxes of the class.
        ap50: the same at IoU .5.
        loss_quantiles: validation focal loss of the class at `ModelCard.quantile_levels`; empty where it had none.
    """

    label: str
    train_count: Annotated[int, Field(ge=0)]
    prior: Probability
    decision_threshold: Probability = 0.5
    confidence_threshold: Probability = 0.5
    ap: Probability | None = None
    ap50: Probability | None = None
    precision: Probability | None = None
    recall: Probability | None = None
    f1: Probability | None = None
    validation_count: Annotated[int, Field(ge=0)] = 0
    loss_quantiles: list[float] = Field(default=[])


class LabelNoise(CardPart):
    """How K exclusive classes are mislabelled, as found on the validation part, and what `/loss` judges labels by.

    Attributes:
        temperature: of the vector scaling, divides the log-probabilities.
        biases: (K,) of the vector scaling, added to them.
        transition: (K, K), row j: how images of class j are labelled; rows sum to 1.
        rate: estimated share of wrong labels in the validation part.
        threshold: a label whose quality is at most this is an issue; that flags the share `rate` of validation.
    """

    temperature: Annotated[float, Field(gt=0.0)]
    biases: list[float]
    transition: list[list[Probability]]
    rate: Probability
    threshold: Probability

    @model_validator(mode="after")
    def _square(self) -> Self:
        classes = len(self.biases)
        if len(self.transition) != classes or any(len(row) != classes for row in self.transition):
            raise ValueError(f"transition must be {classes} x {classes}, as biases has {classes} numbers")
        if any(abs(sum(row) - 1.0) > 1e-6 for row in self.transition):
            raise ValueError("each row of transition must sum to 1")
        return self


class Golden(CardPart):
    """One input whose output is known, run at every load.

    Attributes:
        image_png: the input, (height, width, 3) uint8, as a PNG in base64.
        logits: the graph's output row for it, K numbers, from ONNX Runtime on the CPU; of a detector each class's
            largest logit over all anchors.
        deltas: of a detector the mean of the box deltas over all anchors, 4 numbers; else empty.
    """

    image_png: str
    logits: list[float]
    deltas: list[float] = Field(default=[])

    @property
    def png(self) -> bytes:
        """The input as a PNG file."""
        return base64.b64decode(self.image_png)

    @field_validator("image_png")
    @classmethod
    def _is_base64(cls, value: str) -> str:
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError("is not base64") from error
        return value


class ModelCard(CardPart):
    """Everything needed to use a model that is not in its graph. Unknown keys are refused.

    `detector` is there for the task `detection` and nowhere else. So is `loss_graph_sha256`, of loss.onnx, which may be
    None: bundles of before there was a loss graph have no such file.

    `label_noise` is empty (quality is then the margin), or one over all classes; for a multi-label model one per class,
    over no and yes.

    The card is stored twice: as card.json beside model.onnx, and inside the graph's `metadata_props` under the key
    `focalserve.card`. The second copy is equal but for `sha256`, which cannot be inside the file that it is of.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    created: str
    task: TaskName
    labels: Annotated[list[str], Field(min_length=1)]
    input: ImageInput
    detector: DetectorSpec | None = None
    loss: LossSpec = LossSpec()
    calibration: Calibration = Calibration()
    classes: list[ClassFacts]
    quantile_levels: list[Probability] = Field(default=[0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])
    label_noise: list[LabelNoise] = Field(default=[])
    metrics: dict[str, Estimate] = Field(default={})
    training: dict[str, Any] = Field(default={})
    data_fingerprint: str = ""
    parity_max_difference: Annotated[float, Field(ge=0.0)] = 0.0
    golden: Golden
    loss_graph_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @property
    def outputs(self) -> int:
        """K, the number of logits per image (per anchor): one per label, but a single one for a binary model."""
        return 1 if self.task == "binary" else len(self.labels)

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """What turns the logits into probabilities."""
        return "softmax" if self.task == "multiclass" else "sigmoid"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels) or "" in self.labels:
            raise ValueError("labels must be distinct and not empty")
        if self.task == "binary" and len(self.labels) != 2:
            raise ValueError("a binary model has exactly two labels: negative, positive")
        if self.task != "detection" and len(self.labels) < 2:
            raise ValueError("a classifier has two labels or more")
        self._check_detector()
        if [facts.label for facts in self.classes] != self.labels:
            raise ValueError("classes must list the labels, in their order")
        if self.quantile_levels != sorted(self.quantile_levels):
            raise ValueError("quantile_levels must ascend")
        for facts in self.classes:
            quantiles = facts.loss_quantiles
            if quantiles and (len(quantiles) != len(self.quantile_levels) or quantiles != sorted(quantiles)):
                raise ValueError(f"loss_quantiles of {facts.label!r} must ascend, one per quantile level")
        if isinstance(self.loss.alpha, list) and len(self.loss.alpha) != self.outputs:
            raise ValueError(f"loss.alpha must hold {self.outputs} weights, one per output")
        if self.label_noise:
            parts, classes = (1, len(self.labels)) if self.task != "multilabel" else (len(self.labels), 2)
            if [len(part.biases) for part in self.label_noise] != [classes] * parts:
                raise ValueError(f"label_noise must be empty or hold {parts} of {classes} classes")
        if len(self.golden.logits) != self.outputs:
            raise ValueError(f"golden.logits must hold {self.outputs} numbers")
        return self

    def _check_detector(self) -> None:
        if (self.detector is None) == (self.task == "detection"):
            raise ValueError("detector goes with the task detection, and only with it")
        if self.detector is None:
            if self.loss_graph_sha256 is not None:
                raise ValueError("loss_graph_sha256 is of detectors")
            return
        if len(self.detector.confusion) not in (0, len(self.labels)):
            raise ValueError(f"detector.confusion must be {len(self.labels)} x {len(self.labels)}")
        if self.label_noise:
            raise ValueError("label_noise is of classifiers; a detector has detector.calibrator")
        if len(self.golden.deltas) != 4:
            raise ValueError("golden.deltas must hold 4 numbers")

    @classmethod
    def parse(cls, text: str | bytes, source: str) -> Self:
        """Reads a card from JSON.

        Args:
            text: the JSON document.
            source: what to call it in an error.

        Raises:
            BundleError: it is not JSON or not a card; the message names the first wrong fields.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BundleError(f"{source}: {describe_validation(error)}") from None


def describe_validation(error: ValidationError, most: int = 3) -> str:
    """A validation error in one line: `field.path: message; ...`, the input itself left out."""
    rows = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"{'.'.join(str(part) for part in row['loc']) or 'document'}: {row['msg']}" for row in rows[:most]]
    return "; ".join(said) + (f"; and {len(rows) - most} more" if len(rows) > most else "")


def relative_name(path: Path) -> str:
    """A path as errors show it: its last two parts, never where the machine keeps it."""
    return "/".join(path.parts[-2:])
