"""What an audit says of each given label: how many, how many of them wrong, and what it is taken for."""

from collections import Counter
from collections.abc import Sequence

from service.audit_records import ClassSummary


class Tally:
    """Counts by given label.

    Args:
        labels: the model's.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._place = {label: k for k, label in enumerate(labels)}
        self._counts = [0] * len(labels)
        self._issues = [0] * len(labels)
        self._losses = [0.0] * len(labels)
        self._taken_for = [Counter[int]() for _ in labels]

    def add(self, label: str, is_issue: bool, loss: float | None, suggested: str | None) -> None:
        """Counts one label, or box, that was given; `suggested` where it is one other label."""
        k = self._place[label]
        self._counts[k] += 1
        self._issues[k] += is_issue
        self._losses[k] += loss or 0.0
        if is_issue and suggested is not None:
            self._taken_for[k][self._place[suggested]] += 1

    def summaries(self) -> list[ClassSummary]:
        """The labels that were given, in the model's order; of equally frequent confusions the earlier label."""
        return [
            ClassSummary(
                label=label,
                count=self._counts[k],
                issues=self._issues[k],
                mean_loss=self._losses[k] / self._counts[k],
                most_confused_with=self._most(self._taken_for[k]),
            )
            for k, label in enumerate(self._labels)
            if self._counts[k]
        ]

    def _most(self, taken_for: Counter[int]) -> str | None:
        often = min(taken_for, key=lambda k: (-taken_for[k], k), default=None)
        return None if often is None else self._labels[often]
