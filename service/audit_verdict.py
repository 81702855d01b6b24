"""The end of an audit: all its rows judged together by the noise that is in them, and the audit in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.audit import Audit, Guard, audit_labels, audit_tags
from models.card import ModelCard
from service.audit_file import AuditFile
from service.audit_records import AuditRecord, AuditSummary, ClassSummary, GuardInfo, Verdicts

_LEAST_ROWS, _LEAST_PER_CLASS = 100, 10
_MOST_CLASSES = 256
_MOST_TAG_NUMBERS = 10_000_000
"""Labels with several classes are audited in memory: so many numbers at most."""


@dataclass(frozen=True)
class _Judged:
    """Estimate and guards, with the verdicts where the guards passed."""

    wrong: float | None
    labels: int
    method: str
    guards: list[Guard]
    note: str | None
    verdicts: Verdicts | None


def conclude(card: ModelCard, record: AuditRecord, file: AuditFile) -> tuple[AuditRecord, Verdicts | None]:
    """Judges an audit whose rows are all there.

    Args:
        card: by which its rows were judged one by one.
        record: of the audit.
        file: of the audit.

    Returns:
        The record with its summary; and what is to be stored in place of the rows' own qualities, None where they stay.
    """
    judged = _judge(card, record, file)
    classes = _classes(card, file, judged.verdicts)
    summary = AuditSummary(
        scored=judged.labels // (len(card.labels) if card.task == "multilabel" else 1),
        issues=sum(classes.issues),
        estimated_wrong_labels=judged.wrong,
        estimated_error_rate=None if judged.wrong is None else judged.wrong / judged.labels,
        quality_method=judged.method,
        guards=[GuardInfo(gap=one.gap, shift=one.shift, passed=one.passed) for one in judged.guards],
        note=judged.note,
        classes=classes.summaries(card.labels),
    )
    return record.model_copy(update={"summary": summary}), judged.verdicts


def _judge(card: ModelCard, record: AuditRecord, file: AuditFile) -> _Judged:
    width = len(card.labels) if card.task == "multilabel" else 1
    lines, given = file.targets(width)
    count, outputs = len(lines), card.outputs
    alone = "; ".join(record.methods)
    least = max(_LEAST_ROWS, _LEAST_PER_CLASS * (2 if card.task != "multiclass" else outputs))
    note = None
    if count < least:
        note = f"no estimate: it takes {least} rows for a model of so many classes"
    elif card.task == "multiclass" and outputs > _MOST_CLASSES:
        note = f"no estimate: more than {_MOST_CLASSES} classes"
    elif card.task == "multilabel" and count * outputs > _MOST_TAG_NUMBERS:
        note = f"no estimate: more than {_MOST_TAG_NUMBERS} labels of yes or no"
    if note is not None:
        return _Judged(None, count * width, alone, [], note, None)
    p = file.probabilities(count, outputs)
    if card.task == "multilabel":
        return _judge_tags(card, lines, p, given > 0, alone)
    if card.task == "binary":
        p = np.concatenate([1.0 - p, p], axis=1)
    return _judge_classes(card, lines, p, given[:, 0].astype(np.intp), alone)


def _judge_classes(
    card: ModelCard, lines: NDArray[np.int64], p: NDArray[np.float32], given: NDArray[np.intp], alone: str
) -> _Judged:
    found: Audit = audit_labels(p, given)
    if not found.guard.passed:
        return _dishonest(len(lines), alone, [found.guard])
    doubted = found.is_issue | (found.quality < 0.5)
    suggested: list[str | list[str] | None] = [
        card.labels[k] if doubt else None for k, doubt in zip(found.suggested.tolist(), doubted.tolist(), strict=True)
    ]
    verdicts = Verdicts(lines, found.quality, found.is_issue, suggested)
    return _Judged(found.noise.wrong, len(lines), _together(found.method), [found.guard], None, verdicts)


def _judge_tags(
    card: ModelCard, lines: NDArray[np.int64], p: NDArray[np.float32], given: NDArray[np.bool_], alone: str
) -> _Judged:
    found = audit_tags(np.asarray(p, np.float64), given)
    guards = [one.guard for one in found.classes]
    if not all(guard.passed for guard in guards):
        return _dishonest(given.size, alone, guards)
    issue = np.asarray(found.is_issue.any(axis=1))
    better = given ^ found.is_issue
    suggested: list[str | list[str] | None] = [
        [card.labels[k] for k in np.flatnonzero(row)] if doubt else None
        for row, doubt in zip(better, issue.tolist(), strict=True)
    ]
    wrong = float(sum(one.noise.wrong for one in found.classes))
    method = _together(found.classes[0].method)
    return _Judged(wrong, given.size, method, guards, None, Verdicts(lines, found.quality, issue, suggested))


def _dishonest(labels: int, alone: str, guards: Sequence[Guard]) -> _Judged:
    note = "no estimate: the model's probabilities do not fit these labels well enough to be counted with"
    return _Judged(None, labels, alone, list(guards), note, None)


def _together(method: str) -> str:
    return f"{method} under the noise of this audit's own labels"


class _Tally:
    """Counts per given label."""

    def __init__(self, classes: int) -> None:
        self.counts = [0] * classes
        self.issues = [0] * classes
        self.losses = [0.0] * classes
        self.taken_for: list[Counter[str]] = [Counter() for _ in range(classes)]

    def add(self, classes: Sequence[int], issue: bool, loss: float | None, suggested: Any) -> None:
        for k in classes:
            self.counts[k] += 1
            self.losses[k] += loss or 0.0
            self.issues[k] += issue
            if issue and isinstance(suggested, str):
                self.taken_for[k][suggested] += 1

    def summaries(self, labels: Sequence[str]) -> list[ClassSummary]:
        return [
            ClassSummary(
                label=label,
                count=count,
                issues=self.issues[k],
                mean_loss=self.losses[k] / count,
                most_confused_with=min(
                    self.taken_for[k], key=lambda name: (-self.taken_for[k][name], name), default=None
                ),
            )
            for k, (label, count) in enumerate(zip(labels, self.counts, strict=True))
            if count
        ]


def _classes(card: ModelCard, file: AuditFile, verdicts: Verdicts | None) -> _Tally:
    tally = _Tally(len(card.labels))
    place = 0
    for some in file.scored():
        for target, issue, loss, suggested in some:
            if verdicts is not None:
                issue, suggested = bool(verdicts.is_issue[place]), verdicts.suggested[place]
            classes = np.flatnonzero(target).tolist() if card.task == "multilabel" else target.tolist()
            tally.add(classes, issue, loss, suggested)
            place += 1
    return tally
