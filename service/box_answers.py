"""A detector's answers: detections to those of /predict, given boxes to those of /loss. No HTTP, no images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.box_causes import CAUSES
from models.boxes import BoxLabels
from models.card import ModelCard
from models.detect import BoxScores, Detection
from models.errors import InvalidInput, InvalidLabel
from models.objectlab import soft_minimum
from models.quality import ranks
from models.task import ScoreOptions
from service.detector import Found, Raw
from service.errors import InferenceFailed, InvalidRequest, item_problem
from service.predictions import fill_items
from service.schemas import LossOptions
from service.scoring import ObserveLosses

_TASK = Detection()
_REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class GivenBoxes:
    """One picture's given boxes.

    Attributes:
        labels: pixels of the original.
        id: the caller's own name for the picture.
    """

    labels: BoxLabels
    id: str | None = None


def detect_items(
    card: ModelCard, answers: Sequence[Found | Exception], ids: Sequence[str | None]
) -> list[dict[str, Any]]:
    """One dictionary of the form of `answers.PredictItem` per answer, in their order."""

    def fill(item: dict[str, Any], answer: Found) -> None:
        found = answer.detections
        rows = zip(found.xyxy.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        item["width"], item["height"] = answer.geometry.width, answer.geometry.height
        item["boxes"] = [{"box": box, "label": card.labels[k], "score": score} for box, k, score in rows]

    return fill_items(answers, ids, fill)


def given_boxes(card: ModelCard, label: Any, name: str | None) -> GivenBoxes:
    """One picture's given boxes from their wire form (models.box_labels).

    Raises:
        InvalidLabel: not of that form, naming the place.
    """
    return GivenBoxes(_TASK.targets(label, card), name)


def read_given(card: ModelCard, labels: Sequence[Any], ids: Sequence[str | None]) -> list[GivenBoxes]:
    """Given boxes from their wire form (models.box_labels), one list per picture.

    Raises:
        InvalidRequest: a list that does not fit; names the first ten by index.
    """
    given, wrong = list[GivenBoxes](), list[dict[str, str]]()
    for i, (label, name) in enumerate(zip(labels, ids, strict=True)):
        try:
            given.append(given_boxes(card, label, name))
        except InvalidInput as error:
            place, _, what = str(error).partition(": ")
            wrong.append({"loc": f"inputs.{i}.{place}" if what else f"inputs.{i}.boxes", "msg": what or place})
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InvalidRequest(f"{wrong[0]['loc']}: {wrong[0]['msg']}{more}", wrong[:10])
    return given


def box_options(card: ModelCard, asked: LossOptions) -> ScoreOptions:
    """How given boxes are scored; what a request leaves out comes from the card.

    Raises:
        InvalidRequest: an option that has no meaning for boxes.
    """
    if asked.reduction not in _REDUCTIONS:
        raise InvalidRequest(f"reduction: for boxes it is one of {', '.join(_REDUCTIONS)}, over images")
    if asked.return_gradient or asked.activation is not None or asked.alpha_mode is not None:
        raise InvalidRequest("return_gradient, activation and alpha_mode are not for boxes")
    return ScoreOptions(
        gamma=card.loss.gamma if asked.gamma is None else asked.gamma,
        alpha=asked.alpha if "alpha" in asked.model_fields_set else card.loss.alpha,
        label_smoothing=asked.label_smoothing or 0.0,
        ignore_index=asked.ignore_index,
        reduction=asked.reduction,
        objectlab=asked.objectlab,
    )


def score_picture(
    card: ModelCard, raw: Raw | Exception, given: GivenBoxes, options: ScoreOptions
) -> BoxScores | Exception:
    """Scores one picture's boxes; boxes that do not fit the picture, and a loss graph that fails, are its own error.

    Raises:
        InvalidInput: an option out of its range.
    """
    if isinstance(raw, Exception):
        return raw
    try:
        return _TASK.score(raw.cls_logits, raw.box_deltas, given.labels, raw.geometry, card, options)
    except (InvalidLabel, InferenceFailed) as error:
        return error


def box_loss_answer(
    card: ModelCard,
    given: Sequence[GivenBoxes],
    scores: Sequence[BoxScores | Exception],
    options: ScoreOptions,
    most_missing: int,
    observe: ObserveLosses,
) -> dict[str, Any]:
    """Answer of /loss, without the model's name, in the form of `answers.BoxLossResponse`.

    Args:
        card: of the model.
        given: per picture.
        scores: of each picture, or its own error.
        options: they were computed with.
        most_missing: objects that nobody drew, per picture at most.
        observe: is told the losses of each label's boxes.
    """
    good = [one for one in scores if not isinstance(one, Exception)]
    order = _ranks(good)
    items, next_good = list[dict[str, Any]](), 0
    for index, (one, picture) in enumerate(zip(scores, given, strict=True)):
        item: dict[str, Any] = {"index": index} if picture.id is None else {"index": index, "id": picture.id}
        if isinstance(one, Exception):
            item["error"] = item_problem(one)
        else:
            item |= _picture(card, picture.labels, one, order[next_good], most_missing)
            next_good += 1
        items.append(item)
    return {
        "parameters": {
            "gamma": options.gamma,
            "alpha": options.alpha,
            "label_smoothing": options.label_smoothing,
            "activation": "sigmoid",
            "quality_method": "calibrated causes" if card.detector and card.detector.calibrator else "focal mean",
            "box_loss": card.detector.box_loss if card.detector else None,
        },
        "loss": _summary([one.loss.value for one in good], options.reduction),
        "classes": _classes(card, given, scores, observe),
        "items": items,
    }


def _ranks(scores: Sequence[BoxScores]) -> list[list[int]]:
    """Each box's place among all boxes of the request, 1 = the lowest quality."""
    if not scores:
        return []
    placed = ranks(np.concatenate([one.quality for one in scores]), np.concatenate([one.valid for one in scores]))
    ends = np.cumsum([len(one.quality) for one in scores])[:-1]
    return [part.tolist() for part in np.split(placed, ends)]


def _summary(values: Sequence[float], reduction: str) -> dict[str, Any]:
    total, count = float(np.sum(values)), len(values)
    mean = total / count if count else None
    return {
        "reduction": reduction,
        "value": {"mean": mean, "sum": total}.get(reduction),
        "denominator": float(count) if reduction == "mean" else 1.0,
        "denominator_name": "images" if reduction == "mean" else "none",
        "sum": total,
        "mean": mean,
        "count": count,
    }


def _picture(
    card: ModelCard, labels: BoxLabels, scores: BoxScores, order: Sequence[int], most_missing: int
) -> dict[str, Any]:
    found, missing = scores.loss, scores.missing
    rows = zip(missing.xyxy.tolist(), missing.labels.tolist(), missing.scores.tolist(), strict=True)
    item: dict[str, Any] = {
        "loss": found.value,
        "classification": found.classification,
        "location": found.location,
        "positives": found.positives,
        "boxes": [_box(card, labels, scores, k, order[k]) for k in range(len(labels))],
        "missing": [{"box": box, "label": card.labels[label], "score": score} for box, label, score in rows][
            :most_missing
        ],
    }
    lab = scores.objectlab
    if lab is not None:
        kinds = {"overlooked": lab.overlooked, "badly_located": lab.badly_located, "swapped": lab.swapped}
        item["objectlab"] = {"score": lab.image} | {name: soft_minimum(each) for name, each in kinds.items()}
    return item


def _box(card: ModelCard, labels: BoxLabels, scores: BoxScores, k: int, rank: int) -> dict[str, Any]:
    box: dict[str, Any] = {"index": k, "label": card.labels[labels.labels[k]]}
    if labels.ids[k] is not None:
        box["id"] = labels.ids[k]
    if not scores.valid[k]:
        return box | {"loss": None, "reason": _why_not(labels, k)}
    lab = scores.objectlab
    if lab is not None:
        box["objectlab"] = {"badly_located": float(lab.badly_located[k]), "swapped": float(lab.swapped[k])}
    suggested = int(scores.suggested_labels[k])
    where = scores.suggested_boxes[k]
    return box | {
        "loss": float(scores.losses[k]),
        "best_iou": float(scores.best_iou[k]),
        "quality": float(scores.quality[k]),
        "is_issue": bool(scores.is_issue[k]),
        "cause": CAUSES[scores.cause[k]],
        "causes": dict(zip(CAUSES, scores.causes[k].tolist(), strict=True)),
        "suggested_label": None if suggested < 0 else card.labels[suggested],
        "suggested_box": None if np.isnan(where).any() else where.tolist(),
        "rank": rank,
    }


def _why_not(labels: BoxLabels, k: int) -> str:
    return "ignored: a crowd" if labels.ignored[k] else "not scored: ignored, or hardly in the model's view"


def _classes(
    card: ModelCard, given: Sequence[GivenBoxes], scores: Sequence[BoxScores | Exception], observe: ObserveLosses
) -> list[dict[str, Any]]:
    pairs = [(one.labels.labels, score) for one, score in zip(given, scores, strict=True)
             if not isinstance(score, Exception)]  # fmt: skip
    if not pairs:
        return []
    labels = np.concatenate([label for label, _ in pairs])
    valid, losses, issue, suggested = (
        np.concatenate([getattr(score, name) for _, score in pairs])
        for name in ("valid", "losses", "is_issue", "suggested_labels")
    )
    found = []
    for k in np.unique(labels[valid]).tolist():
        mine = valid & (labels == k)
        observe(card.labels[k], losses[mine])
        swapped = suggested[mine & issue & (suggested >= 0)]
        often = int(np.bincount(swapped).argmax()) if len(swapped) else None
        found.append(
            {
                "label": card.labels[k],
                "count": int(mine.sum()),
                "mean_loss": float(losses[mine].mean()),
                "issues": int((mine & issue).sum()),
                "most_confused_with": None if often is None else card.labels[often],
            }
        )
    return found
