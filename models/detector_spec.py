"""What the card of a detector holds beside that of a classifier."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.card_part import CardPart, Probability


class AnchorLevel(CardPart):
    """The anchors of one level of the feature pyramid.

    Attributes:
        stride: input pixels per cell of the level.
        sizes: square roots of the anchors' areas, input pixels.
    """

    stride: Annotated[int, Field(ge=1)]
    sizes: Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=1)]


class BoxCalibrator(CardPart):
    """Multinomial logistic regression from features to what is wrong, of a given box or a prediction.

    Attributes:
        causes: the kinds, the first one is `none`.
        features: names of the features, in their order.
        mean: (F,) subtracted from the features.
        scale: (F,) divides them then.
        weights: (F, causes).
        bias: (causes,).
    """

    causes: list[str]
    features: list[str]
    mean: list[float]
    scale: list[Annotated[float, Field(gt=0.0)]]
    weights: list[list[float]]
    bias: list[float]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count, kinds = len(self.features), len(self.causes)
        if [len(self.mean), len(self.scale), len(self.weights)] != [count] * 3:
            raise ValueError(f"mean, scale and weights must hold one entry for each of the {count} features")
        if len(self.bias) != kinds or any(len(row) != kinds for row in self.weights):
            raise ValueError(f"bias and each row of weights must hold {kinds} numbers, one per cause")
        return self


class DetectorSpec(CardPart):
    """What makes a model a detector of the RetinaNet family (Lin et al. 2017), beside its labels.

    Attributes:
        levels: of the feature pyramid, finest first; the order of the anchors in the graph's outputs.
        ratios: height over width of the anchors, the same at every level.
        positive_iou: an anchor of at least this IoU with a box learns that box.
        negative_iou: an anchor below this IoU with every box learns background; between the two it learns nothing.
        box_loss: what the box deltas were trained with.
        box_weight: what the box loss was multiplied with.
        score_threshold: default of requests: detections below this score are left out.
        iou_threshold: default of requests: of two detections of a class that overlap more, the better one stays.
        max_detections: default of requests: detections of one image at most.
        confusion: (K, K), row j: what the detector takes validation objects of class j for; rows sum to 1; empty where
            not measured.
        calibrator: how /loss turns a given box's features into causes (models.box_causes); None: the focal mean.
        missing_calibrator: how it turns a prediction's features into the probability that nobody drew the object
            (models.box_missing); None: its p times 1 - IoU.
    """

    levels: Annotated[list[AnchorLevel], Field(min_length=1)]
    ratios: Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=1)]
    positive_iou: Probability = 0.5
    negative_iou: Probability = 0.4
    box_loss: Literal["smooth_l1", "giou"] = "giou"
    box_weight: Annotated[float, Field(ge=0.0)] = 1.0
    score_threshold: Probability = 0.3
    iou_threshold: Probability = 0.5
    max_detections: Annotated[int, Field(ge=1, le=5000)] = 100
    confusion: list[list[Probability]] = Field(default=[])
    calibrator: BoxCalibrator | None = None
    missing_calibrator: BoxCalibrator | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        strides = [level.stride for level in self.levels]
        if strides != sorted(set(strides)):
            raise ValueError("levels must be of rising stride")
        if self.negative_iou > self.positive_iou:
            raise ValueError("negative_iou must not exceed positive_iou")
        if any(len(row) != len(self.confusion) or abs(sum(row) - 1.0) > 1e-6 for row in self.confusion):
            raise ValueError("confusion must be square and each row sum to 1")
        return self
