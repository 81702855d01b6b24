"""`focalserve audit` of boxes: each is judged by a detector that was not trained on its picture."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models.bundle import read_bundle
from models.card import LossSpec, ModelCard
from models.class_logits import HostLogits
from models.detect import BoxScores, Detection, Geometry
from models.errors import InvalidInput
from models.fit import locate
from models.image import load_input
from models.task import ScoreOptions
from scripts.audit_settings import AuditFlags, remember
from scripts.batches import Indices, epoch_batches
from scripts.box_data import BoxDataSet, BoxSample
from scripts.box_fiftyone import write_box_fiftyone
from scripts.box_issues import COLUMNS, MISSING, BoxIssue, find_box_issues, make_box_rows
from scripts.box_label_studio import write_box_interface, write_box_tasks
from scripts.box_readers import read_boxes
from scripts.box_report import write_box_report
from scripts.clients import choose_bundle
from scripts.config import TrainConfig
from scripts.crossfit import assign_folds
from scripts.detector import BoxParts, DetectorJob, build_detection, choose_anchors, choose_size, count_boxes
from scripts.fiftyone import FOLDER
from scripts.interrupts import Interrupts
from scripts.issues import write_issues, written_whole
from scripts.label_checks import fit_label_checks, raw_outputs
from scripts.messages import say
from scripts.recipes import choose_device
from scripts.training import Progress, train_epoch
from service.detector import RAW, DetectorEngine, Raw
from service.settings import usable_cores

_DONE = "issues.json"
_NEVER = 1e9
_TASK = Detection()
_OPTIONS = ScoreOptions(gamma=2.0, alpha=None)


def audit_boxes(flags: AuditFlags, interrupts: Interrupts) -> Path:
    """Audits as asked; the report's place."""
    card = None if flags.bundle is None else read_bundle(choose_bundle(flags.bundle, None)).card
    data = read_boxes(
        flags.data, labels=None if card is None else card.labels, images=flags.images, on_bad_image=flags.on_bad_image,
        on_bad_box=flags.on_bad_box,
    )  # fmt: skip
    fingerprint = data.fingerprint()
    remember(flags, fingerprint)
    if flags.bundle is None:
        issues = cross_judge(flags, data, flags.out / "work", interrupts)
    else:
        issues = find_box_issues(data, ask_detector(flags, data, flags.bundle))
    write_issues(flags.out, make_box_rows(data, issues), COLUMNS)
    write_box_report(flags.out / "report.html", data, issues, flags.show, str(flags.data))
    write_box_tasks(flags.out / "label_studio.json", data, issues, flags.image_url, fingerprint)
    write_box_interface(flags.out / "label_studio.xml", data.labels)
    write_box_fiftyone(flags.out / FOLDER, data, issues)
    summary = summarize(data, issues) | {"in_sample": card is not None and card.data_fingerprint == fingerprint}
    with written_whole(flags.out / "summary.json") as file:
        json.dump(summary, file, indent=2)
    tell(summary)
    return flags.out / "report.html"


def cross_judge(flags: AuditFlags, data: BoxDataSet, work: Path, interrupts: Interrupts) -> list[BoxIssue]:
    """Trains a detector per fold that is not complete, lets it judge the pictures it has not seen, and gathers all."""
    config = flags.training(len(data.samples))
    fold = assign_folds(data, flags.folds, flags.seed)
    todo = [k for k in range(flags.folds) if not (work / f"fold-{k}" / _DONE).is_file()]
    steps = sum(len(epoch_batches(int((fold != k).sum()), config.batch_size, 0, 0)) for k in todo)
    began = time.monotonic()
    with tqdm(total=steps * config.epochs, unit=" batches", disable=None, dynamic_ncols=True) as bar:
        for done, k in enumerate(todo, start=1):
            say(f"fold {k + 1} of {flags.folds}: {(fold != k).sum()} pictures train, {(fold == k).sum()} are held out")
            judge_fold(config, data, np.flatnonzero(fold == k), work / f"fold-{k}", interrupts, bar)
            left = (time.monotonic() - began) / done * (len(todo) - done)
            say(f"fold {k + 1} is complete; about {left:.0f} s left")
    issues = list[BoxIssue]()
    for k in range(flags.folds):
        places = np.flatnonzero(fold == k).tolist()
        issues += [replace(one, sample=places[one.sample]) for one in load_issues(work / f"fold-{k}" / _DONE)]
    return sorted(issues, key=lambda issue: issue.quality)


def judge_fold(
    config: TrainConfig, data: BoxDataSet, held: Indices, folder: Path, interrupts: Interrupts, bar: "tqdm[Any]"
) -> None:
    """Trains without the held-out pictures, judges them, and leaves the issues in the folder."""
    out = set(held.tolist())
    train = tuple(sample for row, sample in enumerate(data.samples) if row not in out)
    val = tuple(data.samples[row] for row in held.tolist())
    if not any(sample.classes for sample in train):
        raise InvalidInput("a fold has no box to train on; use fewer --folds, or more pictures")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = choose_size(config, data.samples)
    parts = BoxParts(data, train, val, count_boxes(train, len(data.labels)), spec, choose_anchors(config, spec, train))
    quiet = config.model_copy(update={"out": folder, "save_every": _NEVER})
    job = build_detection(quiet, parts, choose_device(config.device))
    at = Progress()
    for epoch in range(config.epochs):
        train_epoch(job, at, interrupts, bar)
        at.epoch, at.batch, at.loss_sum = epoch + 1, 0, 0.0
    found = find_box_issues(replace(data, samples=val), judge_held_out(job, val))
    draft = folder / "draft.json"
    draft.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")
    draft.rename(folder / _DONE)


def judge_held_out(job: DetectorJob, val: Sequence[BoxSample]) -> Iterator[BoxScores]:
    """Scores of the held-out pictures' boxes; confusion and calibrator are those of these pictures."""
    labels, spec = list(job.parts.data.labels), job.parts.spec
    detector = fit_label_checks(
        job.parts.detector, job.served, job.val_store, job.val_boxes, len(labels), job.device
    )  # fmt: skip
    card = ModelCard.model_construct(name="fold", labels=labels, input=spec, detector=detector, loss=LossSpec())
    with torch.inference_mode():
        outputs = raw_outputs(job.served, job.val_store, len(val), job.device)
        for sample, (logits, deltas) in zip(val, outputs, strict=True):
            place = Geometry(*locate(sample.width, sample.height, spec), sample.width, sample.height)
            yield _TASK.score(HostLogits(logits), deltas, sample.boxes, place, card, _OPTIONS)


def ask_detector(flags: AuditFlags, data: BoxDataSet, folder: Path) -> Iterator[BoxScores]:
    """Scores by a bundle, picture by picture."""
    engine = DetectorEngine(read_bundle(choose_bundle(folder, None)), flags.device, usable_cores())
    for sample in tqdm(data.samples, desc="asking", unit=" images", disable=None):
        raw = engine.run([load_input(sample.path.read_bytes(), engine.card.input)], RAW)[0]
        if not isinstance(raw, Raw):
            raise InvalidInput(f"{data.relative(sample)}: {raw}")
        yield _TASK.score(raw.cls_logits, raw.box_deltas, sample.boxes, raw.geometry, engine.card, _OPTIONS)


def load_issues(path: Path) -> list[BoxIssue]:
    """What a fold found."""

    def read(row: dict[str, Any]) -> BoxIssue:
        given, box = row["given"], row["box"]
        row["given"] = None if given is None else (given[0], tuple(given[1]))
        row["box"] = None if box is None else tuple(box)
        return BoxIssue(**row | {"parts": tuple(row["parts"])})

    return [read(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def summarize(data: BoxDataSet, issues: Sequence[BoxIssue]) -> dict[str, Any]:
    """The audit in numbers."""
    causes = Counter(issue.cause for issue in issues if issue.is_issue)
    return {
        "task": "detection",
        "images": len(data.samples),
        "labels": list(data.labels),
        "boxes": sum(len(sample.boxes) for sample in data.samples),
        "boxes_judged": sum(issue.cause != MISSING for issue in issues),
        "issues": dict(sorted(causes.items())),
        "left_out": [f"{one.origin}: {one.reason}" for one in (*data.skipped, *data.dropped)],
    }


def tell(summary: dict[str, Any]) -> None:
    """The audit in a few lines, on stderr."""
    if summary["in_sample"]:
        say("warning: in_sample: the model was trained on this very data; wrong boxes that it has learnt look right")
    found = ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in summary["issues"].items())
    say(f"{summary['images']} images, {summary['boxes_judged']} boxes judged: {found or 'no issue'}")
