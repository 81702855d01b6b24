"""The end of an audit: all its rows judged together by the noise that is in them, and the audit in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.audit import FAR, Guard, audit_labels, audit_tags, check_calibration
from models.card import ModelCard
from models.noise import evenly
from models.scaling import fit_vector_scaling
from service.audit_file import AuditFile
from service.audit_records import AuditRecord, AuditSummary, ClassSummary, GuardInfo, Verdicts
from service.audit_tally import Tally

_LEAST_ROWS, _LEAST_PER_CLASS = 100, 10
_MOST_CLASSES = 1000
_FIT_NUMBERS = 2_000_000
_TOGETHER = "posterior of the given label under the noise of this audit's own labels"
_FITTED = "the labels differ from the model more often than it expects: it is over-confident, or many labels are wrong"
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
    issues, classes = _classes(card, file, judged.verdicts)
    summary = AuditSummary(
        scored=judged.labels // (len(card.labels) if card.task == "multilabel" else 1),
        issues=issues,
        estimated_wrong_labels=judged.wrong,
        estimated_error_rate=None if judged.wrong is None else judged.wrong / judged.labels,
        quality_method=judged.method,
        guards=[GuardInfo(gap=one.gap, shift=one.shift, passed=one.passed) for one in judged.guards],
        note=judged.note,
        classes=classes,
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
    guard = check_calibration(p, given)
    if not _is_usable(guard):
        return _unusable(len(lines), alone, [guard])
    if not guard.passed:
        _fit(p, given)
    found = audit_labels(p, given)
    doubted = found.is_issue | (found.quality < 0.5)
    suggested: list[str | list[str] | None] = [
        card.labels[k] if doubt else None for k, doubt in zip(found.suggested.tolist(), doubted.tolist(), strict=True)
    ]
    verdicts = Verdicts(lines, found.quality, found.is_issue, suggested)
    note = None if guard.passed else _FITTED
    return _Judged(found.noise.wrong, len(lines), _TOGETHER, [guard], note, verdicts)


def _judge_tags(
    card: ModelCard, lines: NDArray[np.int64], p: NDArray[np.float32], given: NDArray[np.bool_], alone: str
) -> _Judged:
    wide, guards = np.asarray(p, np.float64), []
    for c in range(wide.shape[1]):
        column, yes = np.stack([1.0 - wide[:, c], wide[:, c]], axis=1), given[:, c].astype(np.intp)
        guards.append(check_calibration(column, yes))
        if not guards[-1].passed:
            _fit(column, yes)
            wide[:, c] = column[:, 1]
    if not all(map(_is_usable, guards)):
        return _unusable(given.size, alone, guards)
    found = audit_tags(wide, given)
    issue = np.asarray(found.is_issue.any(axis=1))
    better = given ^ found.is_issue
    suggested: list[str | list[str] | None] = [
        [card.labels[k] for k in np.flatnonzero(row)] if doubt else None
        for row, doubt in zip(better, issue.tolist(), strict=True)
    ]
    wrong = float(sum(one.noise.wrong for one in found.classes))
    note = None if all(guard.passed for guard in guards) else _FITTED
    return _Judged(wrong, given.size, _TOGETHER, guards, note, Verdicts(lines, found.quality, issue, suggested))


def _is_usable(guard: Guard) -> bool:
    """Whether the guard passed, or failed as it does for an honest model and many wrong labels.

    Such labels make the model look over-confident and move the shares of the classes; one temperature and one bias per
    class undo both. A loss whose bias was not undone, or a moved prior, makes it look under-confident instead.
    """
    return guard.passed or guard.gap > -FAR


def _fit(p: NDArray[Any], given: NDArray[np.intp]) -> None:
    """Fits probabilities (N, K) to the given labels, in place."""
    count, classes = p.shape
    rows = evenly(count, max(1, _FIT_NUMBERS // classes))
    scaling = fit_vector_scaling(np.asarray(p[rows], np.float64), given[rows])
    size = max(1, _FIT_NUMBERS // classes)
    for start in range(0, count, size):
        p[start : start + size] = scaling.apply(np.asarray(p[start : start + size], np.float64))


def _unusable(labels: int, alone: str, guards: Sequence[Guard]) -> _Judged:
    note = "no estimate: the model is less sure than it is right, so its probabilities cannot be counted with"
    return _Judged(None, labels, alone, list(guards), note, None)


def _classes(card: ModelCard, file: AuditFile, verdicts: Verdicts | None) -> tuple[int, list[ClassSummary]]:
    """How many rows are issues, and what is known of each given label."""
    tally, issues, place = Tally(card.labels), 0, 0
    for some in file.scored():
        for target, issue, loss, suggested in some:
            if verdicts is not None:
                issue, suggested = bool(verdicts.is_issue[place]), verdicts.suggested[place]
            issues += issue
            kept, other = (suggested, None) if isinstance(suggested, list) else ([], suggested)
            for k in np.flatnonzero(target).tolist() if card.task == "multilabel" else target.tolist():
                tally.add(card.labels[k], issue and card.labels[k] not in kept, loss, other)
            place += 1
    return issues, tally.summaries()
