"""`focalserve apply`: an audited data set written anew with decisions on its labels, in the format it came in."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, CliToggleFlag, SettingsConfigDict

from models.errors import InvalidInput
from scripts.decisions import Decision, accepted, read_decisions
from scripts.drafts import drafted, put_file
from scripts.flags import Flags
from scripts.issues import cell, names
from scripts.readers import DataSet, Sample, infer_format, read_dataset
from scripts.rewrite import rewrite_jsonl, rewrite_table

LOG = "changes.csv"
_LOG_COLUMNS = ("image", "action", "given_label", "new_label", "new_image")


class ApplyFlags(Flags):
    """Write an audited data set anew, corrected. Example: focalserve apply audit --decisions issues.csv --out fixed.

    The decisions are a CSV or JSON Lines file with the columns `image` and `decision`: accept (the suggestion), keep,
    drop, or empty (keep); or `label`, the class to give (several as a|b). issues.csv with a column more will do, and so
    will Label Studio's JSON export of label_studio.json. Of boxes the file also has `box_id` and `box` (x1|y1|x2|y2): a
    row without box_id draws a box; in Label Studio's export its rectangles are the decisions. The original is never
    touched, and OUT must not exist. changes.csv in OUT tells every change.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve apply")

    audit: CliPositionalArg[Path] = Field(description="folder that focalserve audit wrote")
    out: Path = Field(description="folder for the new data set; must not exist")
    decisions: Path | None = Field(None, description="file of decisions, .csv or .jsonl; or Label Studio's .json")
    accept_issues: CliToggleFlag[bool] = Field(
        False,
        description="accept unseen the suggestions that are sure (p_suggested of .85 or more), of flagged labels",
    )
    link: CliToggleFlag[bool] = Field(False, description="link to the original images instead of copying them")
    separator: str = Field("|", description="between several labels in one cell")


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve apply`; prints the new data set's path on stdout."""
    flags = ApplyFlags.parse(argv)
    source, settings = read_audit(flags.audit)
    if settings["task"] == "detection":
        from scripts.box_apply import apply_boxes  # needs the train extra's YAML; labels of pictures do not

        print(apply_boxes(flags.audit, source, settings, flags.decisions, flags.out, flags.link))
        return 0
    data = read_dataset(source, task=settings["task"], on_bad_image="skip", separator=flags.separator)
    if data.fingerprint() != settings["fingerprint"]:
        raise InvalidInput(f"{source} has changed since it was audited; audit it again")
    if flags.decisions is None and not flags.accept_issues:
        raise InvalidInput("say what to change: --decisions FILE, or --accept-issues")
    issues = read_issues(flags.audit / "issues.jsonl")
    decided = accepted(data, issues) if flags.accept_issues else {}
    if flags.decisions is not None:
        decided |= read_decisions(flags.decisions, data, issues, flags.separator)
    target = write_dataset(data, source, decided, flags)
    print(target)
    return 0


def read_audit(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The data set's path and the settings of an audit.

    Raises:
        InvalidInput: there is no audit.
    """
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Path(document["data"]), document["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{folder}: holds no audit ({error or type(error).__name__})") from None


def read_issues(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of issues.jsonl by image."""
    try:
        with path.open(encoding="utf-8") as lines:
            return {row["image"]: row for row in map(json.loads, lines)}
    except OSError:
        raise InvalidInput(f"{path}: is missing; the audit is not complete") from None


def write_dataset(data: DataSet, source: Path, decided: Mapping[str, Decision], flags: ApplyFlags) -> Path:
    """Writes the new data set whole or not at all; returns what to read it by.

    Raises:
        InvalidInput: OUT exists.
    """
    kind = infer_format(source)
    with drafted(flags.out) as draft:
        placed = _place(data, decided, draft, kind == "folder", flags.link)
        if kind != "folder":
            rewrite = rewrite_jsonl if kind == "jsonl" else rewrite_table
            text = rewrite(source, *_edits(data, decided), flags.separator)
            (draft / source.name).write_bytes(text)
        _write_log(draft / LOG, data, decided, placed)
    dropped = sum(decision.classes is None for decision in decided.values())
    changed = sum(_is_change(sample, decided.get(data.relative(sample))) for sample in data.samples)
    print(f"{changed} labels changed, {dropped} images dropped, {len(data.samples) - dropped} written", file=sys.stderr)
    return flags.out if kind == "folder" else flags.out / source.name


def _place(data: DataSet, decided: Mapping[str, Decision], out: Path, move: bool, link: bool) -> dict[str, str]:
    """Copies or links the images; where classes are folders, into that of the new label. Old to new path."""
    wanted = dict[str, str]()
    for sample in data.samples:
        old = data.relative(sample)
        decision = decided.get(old, Decision(sample.classes))
        if decision.classes is not None:
            parts = old.split("/")
            if move:
                parts[0 if sample.split is None else 1] = data.labels[decision.classes[0]]
            wanted[old] = "/".join(parts)
    # Images that stay where they are keep their names; those that join them give way.
    placed = {old: new for old, new in wanted.items() if old == new}
    taken = set(placed)
    for old, new in wanted.items():
        if old not in placed:
            placed[old] = _free(new, taken)
            taken.add(placed[old])
    for old, new in placed.items():
        put_file(data.root / old, out / new, link)
    return placed


def _free(path: str, taken: set[str]) -> str:
    stem, dot, suffix = path.rpartition(".")
    number, found = 1, path
    while found in taken:
        number += 1
        found = f"{stem}-{number}{dot}{suffix}"
    return found


def _edits(data: DataSet, decided: Mapping[str, Decision]) -> tuple[dict[int, tuple[str, ...]], set[int]]:
    """New labels and dropped rows by line; rows that repeat another follow it, unreadable images are left out."""
    labels, dropped, lines = dict[int, tuple[str, ...]](), set[int](), dict[str, Decision]()
    for sample in data.samples:
        decision = decided.get(data.relative(sample))
        if decision is not None and (decision.classes is None or _is_change(sample, decision)):
            lines[sample.origin] = decision
    for skipped in data.skipped:
        first = skipped.reason.removeprefix("repeats ")
        if first == skipped.reason:
            dropped.add(_line(skipped.origin))
        elif first in lines:
            lines[skipped.origin] = lines[first]
    for origin, decision in lines.items():
        if decision.classes is None:
            dropped.add(_line(origin))
        else:
            labels[_line(origin)] = tuple(data.labels[k] for k in decision.classes)
    return labels, dropped


def _line(origin: str) -> int:
    return int(origin.rpartition(":")[2])


def _is_change(sample: Sample, decision: Decision | None) -> bool:
    return decision is not None and decision.classes is not None and decision.classes != sample.classes


def _write_log(path: Path, data: DataSet, decided: Mapping[str, Decision], placed: Mapping[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(_LOG_COLUMNS)
        for sample in data.samples:
            image, decision = data.relative(sample), decided.get(data.relative(sample))
            if decision is None or (decision.classes is not None and not _is_change(sample, decision)):
                continue
            action = "dropped" if decision.classes is None else "relabelled"
            new = None if decision.classes is None else names(decision.classes, data)
            row = (image, action, names(sample.classes, data), new, placed.get(image))
            out.writerow([cell(value) for value in row])
        for skipped in data.skipped:
            if not skipped.reason.startswith("repeats "):
                out.writerow([cell(skipped.origin), "left out", "", "", ""])
