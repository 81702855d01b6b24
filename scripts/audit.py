"""`focalserve audit`: a folder of labelled images in; a ranked list of wrong labels, corrections, and a report out."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.audit import audit_labels, audit_tags
from models.bundle import read_bundle
from models.calibration import unweighted_probabilities
from scripts.audit_settings import AuditFlags, remember
from scripts.box_readers import is_detection
from scripts.clients import choose_bundle
from scripts.duplicates import Duplicates, find_duplicates
from scripts.fiftyone import FOLDER, write_fiftyone
from scripts.interrupts import Interrupted, Interrupts
from scripts.issues import Judged, judge_classes, judge_tags, make_rows, write_issues, written_whole
from scripts.label_studio import write_interface, write_tasks
from scripts.messages import say
from scripts.readers import DataSet, read_dataset
from scripts.report import Findings, write_report
from service.engine import Engine
from service.settings import usable_cores

Floats = NDArray[np.float64]
_ASKED_AT_ONCE = 64


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve audit`; 130 or 143 where interrupted."""
    flags = AuditFlags.parse(argv)
    # Here and in `run`: these load torch, which --help and a wrong flag need not wait for.
    from scripts.checkpoint import locked

    interrupts = Interrupts()
    try:
        with interrupts.listen(), locked(flags.out):
            run(flags, interrupts)
    except Interrupted as stop:
        say(f"{stop}: stopped; to go on, give the same command again")
        return 128 + stop.number
    return 0


def run(flags: AuditFlags, interrupts: Interrupts) -> None:
    """Audits as asked and prints the report's place on stdout."""
    from scripts.box_audit import audit_boxes
    from scripts.crossfit import cross_fit, given_labels
    from scripts.recipes import use_threads

    use_threads(flags.threads)
    if flags.task == "detection" or (flags.task == "auto" and is_detection(flags.data)):
        print(audit_boxes(flags.model_copy(update={"task": "detection"}), interrupts))
        return
    card = None if flags.bundle is None else read_bundle(choose_bundle(flags.bundle, None)).card
    data = read_dataset(
        flags.data,
        task=flags.task if card is None else card.task,
        labels=None if card is None else card.labels,
        on_bad_image=flags.on_bad_image,
    )
    fingerprint = data.fingerprint()
    remember(flags, fingerprint)
    given = given_labels(data.samples, data)
    if card is None or flags.bundle is None:
        found = cross_fit(flags.training(len(data.samples)), data, flags.folds, flags.out / "work", interrupts)
        p, in_fold, fold, gamma = found.p, found.in_fold, found.fold, 0.0
    else:
        p, in_fold, fold, gamma = ask_bundle(flags, data, flags.bundle), None, None, card.loss.gamma
    duplicates = find_duplicates(data, flags.out)
    judged = judge(data, p, given, in_fold, gamma, duplicates)
    rows = make_rows(data, judged, fold, duplicates)
    worst = [next(rows) for _ in range(min(flags.show, len(data.samples)))]
    write_issues(flags.out, make_rows(data, judged, fold, duplicates))
    findings = Findings(
        data, judged, worst, duplicates, in_sample=card is not None and card.data_fingerprint == fingerprint
    )  # fmt: skip
    summary = summarize(findings)
    with written_whole(flags.out / "summary.json") as file:
        json.dump(summary, file, indent=2)
    write_report(flags.out / "report.html", findings, str(flags.data))
    write_tasks(flags.out / "label_studio.json", findings, flags.image_url)
    write_fiftyone(flags.out / FOLDER, findings)
    write_interface(flags.out / "label_studio.xml", data.labels, data.task == "multilabel")
    tell(findings, summary)
    print(flags.out / "report.html")


def ask_bundle(flags: AuditFlags, data: DataSet, folder: Path) -> NDArray[np.float32]:
    """(N, K) probabilities by a bundle, without the bias of its loss; one column for a binary model; kept on disk."""
    from scripts.batches import Files

    engine = Engine(read_bundle(choose_bundle(folder, None)), flags.device, usable_cores())
    card = engine.card
    store = Files(data.samples, card.input)
    (flags.out / "work").mkdir(exist_ok=True)
    p = np.lib.format.open_memmap(
        flags.out / "work" / "probabilities.npy", mode="w+", dtype=np.float32, shape=(len(data.samples), card.outputs)
    )
    with store.pool, tqdm(total=len(data.samples), desc="asking", unit=" images", disable=None) as bar:
        for rows in np.split(np.arange(len(p)), range(_ASKED_AT_ONCE, len(p), _ASKED_AT_ONCE)):
            logits = np.asarray(engine.run(store.take(rows)), np.float64)
            p[rows] = unweighted_probabilities(logits, card.activation, card.loss.gamma, card.loss.alpha)
            bar.update(len(rows))
    return p


def judge(
    data: DataSet, p: NDArray[np.float32], given: NDArray[Any], in_fold: Floats | None, gamma: float,
    duplicates: Duplicates,
) -> Judged:  # fmt: skip
    """Audits by the task."""
    if data.task == "multilabel":
        wide, yes = np.asarray(p, np.float64), given > 0.5
        return judge_tags(audit_tags(wide, yes, in_fold), wide, yes, in_fold, gamma)
    classes = np.asarray(np.concatenate([1.0 - p, p], axis=1) if data.task == "binary" else p)
    watched = None if in_fold is None else in_fold[:, 0]
    twin = np.array([-1 if (other := duplicates.of(row)) is None else other for row in range(len(given))], np.intp)
    return judge_classes(audit_labels(classes, given, watched, twin), classes, given, watched, gamma)


def summarize(findings: Findings) -> dict[str, Any]:
    """The audit in numbers."""
    data, judged = findings.data, findings.judged
    labels = len(data.samples) * (len(data.labels) if data.task == "multilabel" else 1)
    return {
        "task": data.task,
        "images": len(data.samples),
        "labels": list(data.labels),
        "estimated_wrong_labels": judged.wrong,
        "estimated_error_rate": judged.wrong / labels,
        "issues": int(judged.is_issue.sum()),
        "quality_method": sorted(set(judged.methods)),
        "in_sample": findings.in_sample,
        "duplicates_with_other_labels": len(findings.duplicates.same),
        "near_duplicates_with_other_labels": len(findings.duplicates.near),
        "estimated_joint": None if judged.joint is None else judged.joint.round(3).tolist(),
        "left_out": [f"{one.origin}: {one.reason}" for one in data.skipped],
    }


def tell(findings: Findings, summary: dict[str, Any]) -> None:
    """The audit in a few lines, on stderr."""
    if findings.in_sample:
        say("warning: in_sample: the model was trained on this very data; wrong labels that it has learnt look right")
    say(
        f"{summary['images']} images, about {summary['estimated_wrong_labels']:.0f} wrong labels "
        f"({summary['estimated_error_rate']:.1%}), by {', '.join(summary['quality_method'])}"
    )
    for _, row in findings.worst[:10]:
        better = f" -> {row['suggested_label']}" if row["is_label_issue"] else ""
        say(f"  {row['rank']:4d}  {row['label_score']:.4f}  {row['image']}: {row['given_label']}{better}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
