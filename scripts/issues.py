"""What an audit found, as rows: one per image, the worst label first."""

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from models.audit import Audit, Probabilities, TagAudit
from models.cells import neutralize
from models.quality import normalized_margin, worst_dominates
from scripts.duplicates import Duplicates
from scripts.readers import DataSet

Floats = NDArray[np.float64]
COLUMNS = (
    "rank",
    "image",
    "given_label",
    "suggested_label",
    "p_suggested",
    "is_label_issue",
    "label_score",
    "posterior",
    "p_given",
    "p_in_fold",
    "margin",
    "loss",
    "cause",
    "fold",
    "duplicate_of",
    "duplicate_label",
)
_LEAST = 1e-12
_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Judged:
    """Scores of N labels, whatever the task, in the order of the samples.

    Attributes:
        quality: (N,) in [0, 1], 0 = surely wrong.
        posterior: (N,) the part of it that does not come from watching the training.
        p_given: (N,) held-out probability of the given label; of several, of the worst.
        p_in_fold: (N,) the same while it was trained on; NaN where that was not watched.
        margin: (N,) in [0, 1].
        loss: (N,) focal loss, natural logarithm; of several labels the sum.
        is_issue: (N,).
        suggested: for each the class indices that fit better.
        p_suggested: (N,) probability that they are the true ones; of several labels of the least sure change.
        wrong: estimated number of wrong labels.
        joint: (K, K) estimated number of labels by (true, given); of several labels None.
        methods: what the quality is, and whether the guard passed, per class where there are several labels.
    """

    quality: Floats
    posterior: Floats
    p_given: Floats
    p_in_fold: Floats
    margin: Floats
    loss: Floats
    is_issue: NDArray[np.bool_]
    suggested: list[tuple[int, ...]]
    p_suggested: Floats
    wrong: float
    joint: Floats | None
    methods: list[str]


def judge_classes(
    audit: Audit, p: Probabilities, given: NDArray[np.intp], in_fold: Floats | None, gamma: float
) -> Judged:
    """The audit of exclusive classes as scores; p (N, K)."""
    p_given = np.asarray(p[np.arange(len(given)), given], np.float64)
    margins = np.empty(len(given))
    for rows in np.array_split(np.arange(len(given)), 1 + p.size // _AT_ONCE):
        margins[rows] = normalized_margin(np.asarray(p[rows], np.float64), given[rows])
    alone = [(k,) for k in range(p.shape[1])]
    return Judged(
        quality=audit.quality,
        posterior=audit.posterior,
        p_given=p_given,
        p_in_fold=np.full(len(given), np.nan) if in_fold is None else in_fold,
        margin=margins,
        loss=_focal(p_given, gamma),
        is_issue=audit.is_issue,
        suggested=[alone[k] for k in audit.suggested.tolist()],
        p_suggested=audit.p_suggested,
        wrong=audit.noise.wrong,
        joint=audit.noise.joint,
        methods=[audit.method],
    )


def judge_tags(audit: TagAudit, p: Floats, given: NDArray[np.bool_], in_fold: Floats | None, gamma: float) -> Judged:
    """The audit of several labels per image as scores; p (N, C) of yes."""
    fit = np.where(given, p, 1.0 - p)
    better = given ^ audit.is_issue
    return Judged(
        quality=audit.quality,
        posterior=worst_dominates(np.stack([one.posterior for one in audit.classes], axis=1)),
        p_given=fit.min(axis=1),
        p_in_fold=np.full(len(p), np.nan) if in_fold is None else in_fold.min(axis=1),
        margin=fit.min(axis=1),
        loss=_focal(fit, gamma).sum(axis=1),
        is_issue=np.asarray(audit.is_issue.any(axis=1)),
        suggested=[tuple(np.flatnonzero(row).tolist()) for row in better],
        p_suggested=np.where(audit.is_issue, 1.0 - audit.elements, 1.0).min(axis=1),
        wrong=sum(one.noise.wrong for one in audit.classes),
        joint=None,
        methods=[one.method for one in audit.classes],
    )


def make_rows(
    data: DataSet, judged: Judged, fold: NDArray[np.int64] | None, duplicates: Duplicates
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The samples' positions and rows of COLUMNS, the lowest quality first."""
    for rank, row in enumerate(np.argsort(judged.quality, kind="stable").tolist(), start=1):
        issue, twin = bool(judged.is_issue[row]), duplicates.of(row)
        yield (
            row,
            {
                "rank": rank,
                "image": data.relative(data.samples[row]),
                "given_label": names(data.samples[row].classes, data),
                "suggested_label": names(judged.suggested[row], data) if issue else None,
                "p_suggested": float(judged.p_suggested[row]) if issue else None,
                "is_label_issue": issue,
                "label_score": float(judged.quality[row]),
                "posterior": float(judged.posterior[row]),
                "p_given": float(judged.p_given[row]),
                "p_in_fold": None if np.isnan(judged.p_in_fold[row]) else float(judged.p_in_fold[row]),
                "margin": float(judged.margin[row]),
                "loss": float(judged.loss[row]),
                "cause": _cause(row, issue, duplicates),
                "fold": None if fold is None else int(fold[row]),
                "duplicate_of": None if twin is None else data.relative(data.samples[twin]),
                "duplicate_label": None if twin is None else names(data.samples[twin].classes, data),
            },
        )


def names(classes: Sequence[int], data: DataSet) -> str | list[str]:
    """Class names: one, or a list where an image may have several."""
    found = [data.labels[k] for k in classes]
    return found if data.task == "multilabel" else found[0]


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file that appears only when all of it is written."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def write_issues(folder: Path, rows: Iterator[tuple[int, dict[str, Any]]], columns: Sequence[str] = COLUMNS) -> None:
    """Writes issues.csv and issues.jsonl, row by row."""
    with written_whole(folder / "issues.csv") as table, written_whole(folder / "issues.jsonl") as lines:
        out = csv.writer(table)
        out.writerow(columns)
        for _, row in rows:
            out.writerow([cell(row[column]) for column in columns])
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def cell(value: Any) -> Any:
    """A value as a cell of our CSV files."""
    if isinstance(value, list):
        return neutralize("|".join(map(str, value)))
    return neutralize(value) if isinstance(value, str) else "" if value is None else value


def _cause(row: int, issue: bool, duplicates: Duplicates) -> str | None:
    if row in duplicates.same:
        return "duplicate with another label"
    if issue:
        return "wrong label"
    return "near-duplicate with another label" if row in duplicates.near else None


def _focal(p: Floats, gamma: float) -> Floats:
    safe = np.clip(p, _LEAST, 1.0)
    return np.asarray(-((1.0 - safe) ** gamma) * np.log(safe))
