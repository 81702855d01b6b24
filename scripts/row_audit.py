"""`focalserve audit-rows`: a model's answers and the given labels in; a ranked list of wrong labels out."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.audit import audit_labels
from models.errors import InvalidInput
from scripts.flags import Flags
from scripts.issues import Judged, judge_classes, written_whole
from scripts.row_issues import write_row_issues
from scripts.rows_file import RowsFile

_WORST = 10


class RowFlags(Flags):
    """Find the wrong labels of rows of logits or probabilities. Example: focalserve audit-rows rows.npz --out audit.

    ROWS is an .npz file (numpy.savez) with the arrays `logits` or `probabilities`, (N, K) floats, of images that their
    model was not trained on; `labels`, (N,) class indices from 0; and perhaps `ids`, (N,) text or integers. Writes
    issues.csv, issues.jsonl and summary.json.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve audit-rows")

    rows: CliPositionalArg[Path] = Field(description=".npz file of logits or probabilities, and labels")
    out: Path = Field(description="folder for what is found")


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve audit-rows`; prints the path of issues.csv on stdout."""
    flags = RowFlags.parse(argv)
    if (flags.out / "config.json").exists():
        raise InvalidInput(f"{flags.out} holds an audit of pictures; choose another --out")
    file = RowsFile(flags.rows)
    given, ids = file.labels(), file.ids()
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{flags.out}: cannot be written ({(error.strerror or str(error)).lower()})") from None
    with _on_disk(file, flags.out) as p:
        audit = audit_labels(p, given)
        judged = judge_classes(audit, p, given, None, 0.0)
    order = np.argsort(judged.quality, kind="stable")
    write_row_issues(flags.out, order, judged, given, ids)
    with written_whole(flags.out / "summary.json") as out:
        json.dump(_summary(file, judged), out, indent=2)
    _tell(judged, given, order)
    print(flags.out / "issues.csv")
    return 0


@contextmanager
def _on_disk(file: RowsFile, folder: Path) -> Iterator[NDArray[np.float32]]:
    """(N, K) probabilities in a file without a name: memory holds what is worked on."""
    with tempfile.TemporaryFile(dir=folder) as draft:
        for chunk in file.probabilities():
            draft.write(chunk.astype(np.float32).data)
        draft.flush()
        yield np.memmap(draft, np.float32, "r", shape=(file.count, file.classes))


def _summary(file: RowsFile, judged: Judged) -> dict[str, Any]:
    """The audit in numbers."""
    return {
        "task": "multiclass",
        "rows": file.count,
        "classes": file.classes,
        "estimated_wrong_labels": judged.wrong,
        "estimated_error_rate": judged.wrong / file.count,
        "issues": int(judged.is_issue.sum()),
        "quality_method": judged.methods,
        "estimated_joint": None if judged.joint is None else judged.joint.round(3).tolist(),
    }


def _tell(judged: Judged, given: NDArray[np.intp], order: NDArray[np.intp]) -> None:
    """The audit in a few lines, on stderr."""
    rate = judged.wrong / len(given)
    lines = [f"{len(given)} rows, about {judged.wrong:.0f} wrong labels ({rate:.1%}), by {judged.methods[0]}"]
    for rank, row in enumerate(order[:_WORST].tolist(), start=1):
        better = f" -> {judged.suggested[row][0]}" if judged.is_issue[row] else ""
        lines.append(f"  {rank:4d}  {judged.quality[row]:.4f}  row {row}: {given[row]}{better}")
    print("\n".join(lines), file=sys.stderr)
