"""Issues of an audit of rows as CSV and JSON Lines, by the million: each number is made text once, for both."""

import re
from collections.abc import Sequence
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from scripts.issues import Judged, cell, written_whole

COLUMNS = (
    "rank",
    "row",
    "id",
    "given_label",
    "suggested_label",
    "p_suggested",
    "is_label_issue",
    "label_score",
    "posterior",
    "p_given",
    "margin",
    "loss",
)
_QUOTE = '"'
_SPECIAL = re.compile(r'[",\r\n]')
_AT_ONCE = 20_000


def write_row_issues(
    folder: Path, order: NDArray[np.intp], judged: Judged, given: NDArray[np.intp], ids: NDArray[Any] | None
) -> None:
    """Writes issues.csv and issues.jsonl.

    Args:
        folder: where to.
        order: (N,) positions of the rows, the lowest quality first.
        judged: what is known of them.
        given: (N,) class indices.
        ids: (N,) text or integers.
    """
    with written_whole(folder / "issues.csv") as table, written_whole(folder / "issues.jsonl") as lines:
        table.write(",".join(COLUMNS) + "\r\n")
        for start in range(0, len(order), _AT_ONCE):
            rows = order[start : start + _AT_ONCE]
            names = None if ids is None else ids[rows].tolist()
            issue = judged.is_issue[rows].tolist()
            known = [_texts(list(range(start + 1, start + 1 + len(rows)))), _texts(rows.tolist())]
            labels = _texts(given[rows].tolist())
            better = (
                _texts([judged.suggested[row][0] for row in rows.tolist()]),
                _texts(judged.p_suggested[rows].tolist()),
            )
            parts = (judged.quality, judged.posterior, judged.p_given, judged.margin, judged.loss)
            numbers = [_texts(part[rows].tolist()) for part in parts]
            table.write("".join(map(_row, *known, _cells(names, len(rows)), labels, issue, *better, *numbers)))
            lines.write("".join(map(_line, *known, _encoded(names, len(rows)), labels, issue, *better, *numbers)))


def _row(rank: str, row: str, name: str, given: str, issue: bool, better: str, sure: str, quality: str, posterior: str,
         p_given: str, margin: str, loss: str) -> str:  # fmt: skip
    suggestion = f"{better},{sure},True" if issue else ",,False"
    return f"{rank},{row},{name},{given},{suggestion},{quality},{posterior},{p_given},{margin},{loss}\r\n"


def _line(rank: str, row: str, name: str, given: str, issue: bool, better: str, sure: str, quality: str,
          posterior: str, p_given: str, margin: str, loss: str) -> str:  # fmt: skip
    suggestion = (better, sure, "true") if issue else ("null", "null", "false")
    return (
        f'{{"rank": {rank}, "row": {row}, "id": {name}, "given_label": {given}, "suggested_label": {suggestion[0]}, '
        f'"p_suggested": {suggestion[1]}, "is_label_issue": {suggestion[2]}, "label_score": {quality}, '
        f'"posterior": {posterior}, "p_given": {p_given}, "margin": {margin}, "loss": {loss}}}\n'
    )


def _texts(values: Sequence[float]) -> list[str]:
    """Numbers as text, exact; six times as fast as `repr` each."""
    return to_json(values).decode()[1:-1].split(",")


def _encoded(names: Sequence[str | int] | None, count: int) -> list[str]:
    """Ids as JSON; null where there are none."""
    if names is None:
        return ["null"] * count
    return [encode_basestring(name) if isinstance(name, str) else str(name) for name in names]


def _cells(names: Sequence[str | int] | None, count: int) -> list[str]:
    """Ids as cells of a CSV file, quoted where they must be; empty where there are none."""
    if names is None:
        return [""] * count
    cells = [str(cell(name)) for name in names]
    return [f'"{text.replace(_QUOTE, _QUOTE * 2)}"' if _SPECIAL.search(text) else text for text in cells]
