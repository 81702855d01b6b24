"""What /loss says of scored labels: one item each, and one for each class."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import ModelCard
from models.quality import ranks
from models.task import LabelScores


def item_answers(scores: LabelScores, card: ModelCard) -> Iterator[dict[str, Any]]:
    """What an item says of its scores, one after another; read from lists, since an array's numbers cost more each."""
    columns = [
        scores.valid,
        scores.loss,
        scores.log_p_given,
        np.exp(scores.log_p_given),
        scores.margin,
        scores.quality,
        scores.is_issue,
        ranks(scores.quality, scores.valid),
        scores.percentile,
    ]
    rows = zip(*(column.tolist() for column in columns), scores.suggested, strict=True)
    for valid, loss, log_p, p, margin, quality, is_issue, rank, percentile, suggested in rows:
        if not valid:
            yield {"loss": None, "reason": "ignored: its label is ignore_index"}
            continue
        item: dict[str, Any] = {
            "loss": loss if math.isfinite(loss) else None,
            "log_p_given": log_p,
            "p_given": p,
            "margin": margin,
            "quality": quality,
            "suggested_label": _name(suggested, card),
            "is_issue": is_issue,
            "rank": rank,
        }
        if not math.isfinite(loss):
            item["reason"] = "the loss is beyond the largest number"
        if not math.isnan(percentile):
            item["loss_percentile"] = percentile
        yield item


def class_answers(scores: LabelScores, member: NDArray[np.bool_], card: ModelCard) -> list[dict[str, Any]]:
    """Per class of the given label: how many, mean loss, mean p, issues, and what it is most often taken for.

    Args:
        scores: of the labels.
        member: (N, L), whether a label is, or holds, each of the card's.
        card: of the model.
    """
    member = member & scores.valid[:, None]
    p_given = np.exp(scores.log_p_given)
    found = []
    for k in np.flatnonzero(member.any(axis=0)):
        mine = member[:, k]
        issues = np.flatnonzero(mine & scores.is_issue)
        others = [other for n in issues if isinstance(other := scores.suggested[n], int)]
        found.append(
            {
                "label": card.labels[k],
                "count": int(mine.sum()),
                "mean_loss": float(scores.loss[mine].mean()),
                "mean_p_given": float(p_given[mine].mean()),
                "issues": len(issues),
                "most_confused_with": card.labels[np.bincount(others).argmax()] if others else None,
            }
        )
    return found


def _name(suggested: int | tuple[int, ...] | None, card: ModelCard) -> str | list[str] | None:
    if suggested is None:
        return None
    return [card.labels[k] for k in suggested] if isinstance(suggested, tuple) else card.labels[suggested]
