"""What /predict and /loss answer, as OpenAPI tells it. `service.scoring` makes dictionaries of these forms."""

from pydantic import BaseModel, Field


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str


class TopClass(BaseModel):
    """A class with its calibrated probability."""

    label: str
    probability: float


class ItemError(BaseModel):
    """Why one item has no answer; the others have theirs."""

    type: str
    status: int
    detail: str


class DetectedBox(BaseModel):
    """An object, by a detector."""

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2, pixels of the image, within it")
    label: str
    score: float


class PredictItem(BaseModel):
    """What the model says of one image, or that item's own error."""

    index: int
    id: str | None = None
    width: int | None = Field(None, description="of the image as it is looked at, pixels (detectors)")
    height: int | None = None
    boxes: list[DetectedBox] | None = Field(None, description="by falling score (detectors)")
    label: str | None = None
    labels: list[str] | None = Field(None, description="every class at or above its decision threshold (multi-label)")
    score: float | None = Field(None, description="calibrated probability of the label")
    margin: float | None = Field(None, description="score minus the next best; sigmoid: distance to the threshold")
    top_k: list[TopClass] | None = None
    probabilities: list[float] | None = Field(None, description="calibrated, in the order of the model's labels")
    error: ItemError | None = None


class PredictResponse(BaseModel):
    """The answer of /predict."""

    model: ModelName
    predictions: list[PredictItem]


class LossItem(BaseModel):
    """Scores of one given label, or that item's own error."""

    index: int
    id: str | None = None
    loss: float | None = Field(None, description="focal loss, natural logarithm; null with a reason where ignored")
    log_p_given: float | None = None
    p_given: float | None = Field(None, description="probability of the given label, of the logits as they are")
    margin: float | None = Field(None, description="(p_given - largest other p + 1) / 2, of the logits as they are")
    quality: float | None = Field(None, description="0 = surely wrong, 1 = surely right; by quality_method")
    suggested_label: str | list[str] | None = None
    is_issue: bool | None = None
    rank: int | None = Field(None, description="1 = the lowest quality of this request")
    loss_percentile: float | None = Field(None, description="share of the class's validation losses below this one")
    clipped: bool | None = Field(
        None, description="the given label's probability was 0 and counted as the smallest double"
    )
    gradient: list[float] | None = None
    reason: str | None = None
    error: ItemError | None = None


class LossSummary(BaseModel):
    """The batch's loss."""

    reduction: str
    value: float | None = Field(description="null for `none`, and for the mean of nothing")
    denominator: float
    denominator_name: str
    sum: float
    mean: float | None
    count: int = Field(description="labels that were scored")


class LossClass(BaseModel):
    """What the batch says of one class, by its given label."""

    label: str
    count: int
    mean_loss: float
    mean_p_given: float
    issues: int
    most_confused_with: str | None


class LossParameters(BaseModel):
    """What the scores were computed with."""

    gamma: float
    alpha: float | list[float] | None
    label_smoothing: float
    activation: str
    quality_method: str = Field(description="posterior under label noise where the card knows it, else the margin")
    temperature: float


class LossResponse(BaseModel):
    """The answer of /loss."""

    model: ModelName
    parameters: LossParameters
    loss: LossSummary
    classes: list[LossClass]
    items: list[LossItem]


class BoxCauses(BaseModel):
    """What is wrong with a given box: probabilities where the model is calibrated for it, else scores to rank by."""

    none: float
    badly_located: float
    swapped: float
    spurious: float


class ObjectLabBox(BaseModel):
    """ObjectLab's scores of a given box, 0 = surely wrong, 1 = sound."""

    badly_located: float
    swapped: float


class ObjectLabPicture(ObjectLabBox):
    """ObjectLab's scores of an image, 0 = surely wrong: the soft minimum of each kind, and `score` of all of them."""

    score: float
    overlooked: float


class JudgedBox(BaseModel):
    """Scores of one given box; null with a reason where it is not scored."""

    index: int
    id: int | str | None = None
    label: str
    loss: float | None = Field(description="focal loss: sum over classes, mean over the box's anchors")
    best_iou: float | None = Field(None, description="largest IoU with a prediction of at least .05")
    quality: float | None = Field(None, description="0 = surely wrong, 1 = surely right; by quality_method")
    is_issue: bool | None = None
    cause: str | None = Field(None, description="none, badly_located, swapped or spurious")
    causes: BoxCauses | None = None
    suggested_label: str | None = Field(None, description="the likeliest class where it is another one")
    suggested_box: tuple[float, float, float, float] | None = None
    objectlab: ObjectLabBox | None = Field(None, description="where it was asked for")
    reason: str | None = None


class LossBox(JudgedBox):
    """Scores of one given box among those of a request."""

    rank: int | None = Field(None, description="1 = the lowest quality of this request")


class LossPicture(BaseModel):
    """Scores of one image's given boxes, and what they miss; or that image's own error."""

    index: int
    id: str | None = None
    loss: float | None = Field(None, description="(classification + box_weight * location) / max(1, positives)")
    classification: float | None = Field(None, description="focal loss over all anchors that count")
    location: float | None = Field(None, description="loss of the predicted boxes of positive anchors")
    positives: int | None = Field(None, description="anchors that learn a box")
    boxes: list[LossBox] | None = None
    missing: list[DetectedBox] | None = Field(None, description="objects that nobody drew, by falling score")
    objectlab: ObjectLabPicture | None = Field(None, description="where it was asked for")
    error: ItemError | None = None


class BoxLossClass(BaseModel):
    """What the batch says of one class, by its given label."""

    label: str
    count: int
    mean_loss: float
    issues: int
    most_confused_with: str | None


class BoxLossParameters(BaseModel):
    """What the scores were computed with."""

    gamma: float
    alpha: float | list[float] | None
    label_smoothing: float
    activation: str
    quality_method: str = Field(description="calibrated causes where the card has a calibrator, else focal mean")
    box_loss: str


class BoxLossResponse(BaseModel):
    """The answer of /loss where the model is a detector."""

    model: ModelName
    parameters: BoxLossParameters
    loss: LossSummary
    classes: list[BoxLossClass]
    items: list[LossPicture]
