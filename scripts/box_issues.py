"""What an audit of boxes found, as rows: one for each given box and each missing object, the worst first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.box_causes import BADLY_LOCATED, CAUSES, NONE, SWAPPED
from models.box_missing import LEAST_MISSING
from models.detect import BoxScores
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_tables import Box

MISSING = "missing"
COLUMNS = (
    "rank",
    "image",
    "box_id",
    "given_label",
    "given_box",
    "suggested_label",
    "suggested_box",
    "is_label_issue",
    "label_score",
    "cause",
    *(f"p_{cause}" for cause in CAUSES[1:]),
    "loss",
    "best_iou",
)
_DIGITS = 2  # of a pixel


@dataclass(frozen=True)
class BoxIssue:
    """What is known of one given box, or of an object that nobody drew.

    Attributes:
        sample: the picture's position in the data set.
        box_id: the box's id as the data set has it; of missing objects `new-1`, `new-2`, ... in each picture; None for
            a box without one, on which no decision can be taken.
        quality: in [0, 1], 0 = surely wrong; of missing objects 1 - score.
        is_issue: whether it looks wrong.
        cause: one of models.box_causes.CAUSES, or `missing`.
        given: class and box, pixels of the upright picture; None for missing objects.
        label: the class that fits better, None where there is none.
        box: the box that fits better, None where there is none.
        parts: probability of each cause but `none`, in the order of CAUSES; of missing objects empty.
        loss: focal loss of the box; NaN for missing objects.
        best_iou: largest IoU with a prediction; NaN for missing objects.
    """

    sample: int
    box_id: int | str | None
    quality: float
    is_issue: bool
    cause: str
    given: tuple[int, Box] | None
    label: int | None
    box: Box | None
    parts: tuple[float, ...]
    loss: float
    best_iou: float


def find_box_issues(
    data: BoxDataSet, scores: Iterable[BoxScores], least_missing: float = LEAST_MISSING
) -> list[BoxIssue]:
    """All given boxes that could be judged and all missing objects, the lowest quality first.

    A swapped box gets a label suggested, a badly located one a box, a missing one both, a spurious one neither.

    Args:
        data: what was scored.
        scores: of each sample, in their order, by a detector that was not trained on it.
        least_missing: missing objects of a lower score are left out.

    Raises:
        ValueError: not as many scores as samples.
    """
    found = list[BoxIssue]()
    for place, (sample, one) in enumerate(zip(data.samples, scores, strict=True)):
        found += _given(place, sample, one)
        found += _missing(place, one, least_missing)
    return sorted(found, key=lambda issue: issue.quality)


def make_box_rows(data: BoxDataSet, issues: Sequence[BoxIssue]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The samples' positions and rows of COLUMNS, as `scripts.issues.write_issues` takes them."""
    for rank, issue in enumerate(issues, start=1):
        parts = issue.parts or (None,) * (len(CAUSES) - 1)
        yield (
            issue.sample,
            {
                "rank": rank,
                "image": data.relative(data.samples[issue.sample]),
                "box_id": issue.box_id,
                "given_label": None if issue.given is None else data.labels[issue.given[0]],
                "given_box": None if issue.given is None else list(issue.given[1]),
                "suggested_label": None if issue.label is None else data.labels[issue.label],
                "suggested_box": None if issue.box is None else list(issue.box),
                "is_label_issue": issue.is_issue,
                "label_score": issue.quality,
                "cause": issue.cause if issue.is_issue else None,
                **{f"p_{cause}": part for cause, part in zip(CAUSES[1:], parts, strict=True)},
                "loss": None if np.isnan(issue.loss) else issue.loss,
                "best_iou": None if np.isnan(issue.best_iou) else issue.best_iou,
            },
        )


def _given(place: int, sample: BoxSample, scores: BoxScores) -> Iterator[BoxIssue]:
    for k in np.flatnonzero(scores.valid).tolist():
        cause, label = int(scores.cause[k]), int(scores.suggested_labels[k])
        better = scores.suggested_boxes[k]
        yield BoxIssue(
            sample=place,
            box_id=sample.boxes.ids[k],
            quality=float(scores.quality[k]),
            is_issue=bool(scores.is_issue[k]),
            cause=CAUSES[cause],
            given=(int(sample.boxes.labels[k]), _rounded(sample.boxes.xyxy[k].tolist())),
            label=label if cause == SWAPPED and label >= 0 else None,
            box=_rounded(better.tolist()) if cause == BADLY_LOCATED and np.isfinite(better).all() else None,
            parts=tuple(scores.causes[k, NONE + 1 :].tolist()),
            loss=float(scores.losses[k]),
            best_iou=float(scores.best_iou[k]),
        )


def _missing(place: int, scores: BoxScores, least: float) -> Iterator[BoxIssue]:
    found = scores.missing
    for k in np.flatnonzero(found.scores >= least).tolist():
        yield BoxIssue(
            sample=place,
            box_id=f"new-{k + 1}",
            quality=1.0 - float(found.scores[k]),
            is_issue=True,
            cause=MISSING,
            given=None,
            label=int(found.labels[k]),
            box=_rounded(found.xyxy[k].tolist()),
            parts=(),
            loss=float("nan"),
            best_iou=float("nan"),
        )


def _rounded(corners: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (round(value, _DIGITS) for value in corners)
    return x1, y1, x2, y2
