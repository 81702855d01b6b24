"""Cross-validation with the trainer: what nets say of every image that were not trained on it, and that were.

Each fold leaves `fold-N/{held_out,in_fold}.npy` when it is complete, so that an interrupted run goes on with the next.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from models.calibration import unweighted_probabilities
from models.card import ImageInput
from models.errors import InvalidInput
from models.fit import Pixels
from scripts.balance import count_classes, encode_targets
from scripts.batches import Indices, Store, epoch_batches, open_store
from scripts.classifier import ClassifierJob, Parts, build_classifier, choose_input, predict_validation
from scripts.config import TrainConfig
from scripts.heldout import FOLDER, mean_over_epochs, store_epoch
from scripts.interrupts import Interrupts
from scripts.messages import say
from scripts.readers import DataSet, Sample
from scripts.training import Progress, train_epoch

Floats = NDArray[np.float64]
_NEVER = 1e9
_HELD_OUT, _IN_FOLD = "held_out.npy", "in_fold.npy"


@dataclass(frozen=True)
class CrossFit:
    """What cross-validation found, rows as the data set's samples.

    Attributes:
        p: (N, K) float32 on disk, mean over epochs of the probabilities by the net of the fold that held the image out;
            one column for a binary task.
        in_fold: (N, 1), or (N, C) for several labels per image: mean probability of the given label, or of the
            given yes or no, while the image was trained on.
        fold: (N,) which fold held it out, from 0.
    """

    p: NDArray[np.float32]
    in_fold: Floats
    fold: Indices


@dataclass(frozen=True)
class Subset:
    """Some images of a store."""

    store: Store
    rows: Indices

    def take(self, indices: Indices) -> Pixels:
        """(n, height, width, 3) uint8 of the samples at these positions."""
        return self.store.take(self.rows[indices])


class InFold:
    """The mean probability of the given label over all times that an image was trained on."""

    def __init__(self, targets: NDArray[Any], gamma: float) -> None:
        self.targets, self.gamma = targets, gamma
        self.sums = np.zeros((len(targets), 1 if targets.ndim == 1 else targets.shape[1]))
        self.seen = np.zeros((len(targets), 1))

    def __call__(self, indices: Indices, logits: Tensor) -> None:
        """Takes note of one step: positions (n,) and logits (n, K)."""
        given = self.targets[indices]
        activation = "softmax" if given.ndim == 1 else "sigmoid"
        p = unweighted_probabilities(logits.double().cpu().numpy(), activation, self.gamma, None)
        fit = p[np.arange(len(p)), given][:, None] if given.ndim == 1 else np.where(given > 0.5, p, 1.0 - p)
        self.sums[indices] += fit
        self.seen[indices] += 1.0

    @property
    def mean(self) -> Floats:
        """(n, 1) or (n, C)."""
        return np.asarray(self.sums / np.maximum(self.seen, 1.0))


class Item(Protocol):
    """A sample of any data set."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Class indices."""
        ...

    @property
    def group(self) -> str | None:
        """Samples of one group stay together."""
        ...


class Classified(Protocol):
    """A data set of images or of boxes."""

    @property
    def samples(self) -> Sequence[Item]:
        """In the order of the source."""
        ...

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) labels per class."""
        ...

    def relative(self, sample: Any, /) -> str:
        """A sample's path."""
        ...


def assign_folds(data: Classified, folds: int, seed: int) -> Indices:
    """The fold of each sample, (N,): every class (the rarest of several) spread evenly, groups whole.

    Raises:
        InvalidInput: fewer groups or images than folds.
    """
    counts = data.counts

    def rarest(sample: Item) -> int:
        return min(sample.classes, key=lambda k: (counts[k], k), default=len(counts))

    units: dict[str, list[int]] = {}
    for row, sample in enumerate(data.samples):
        name = f"path:{data.relative(sample)}" if sample.group is None else f"group:{sample.group}"
        units.setdefault(name, []).append(row)
    if len(units) < folds:
        raise InvalidInput(f"{len(units)} images or groups cannot be cut into {folds} folds")
    ordered = sorted(
        units, key=lambda name: (Counter(rarest(data.samples[row]) for row in units[name]).most_common(1)[0][0],
                                 hashlib.sha256(json.dumps([seed, name]).encode()).digest())
    )  # fmt: skip
    out = np.zeros(len(data.samples), np.int64)
    for position, name in enumerate(ordered):
        out[units[name]] = position % folds
    return out


def cross_fit(config: TrainConfig, data: DataSet, folds: int, work: Path, interrupts: Interrupts) -> CrossFit:
    """Trains one net per fold that is not complete, and gathers what all found.

    Args:
        config: of each training; its split and output are not used.
        data: to be cut.
        folds: how many, 2 or more.
        work: the folder for what is found.
        interrupts: stops between steps.
    """
    fold = assign_folds(data, folds, config.seed)
    todo = [k for k in range(folds) if not (work / f"fold-{k}" / _IN_FOLD).is_file()]
    if todo:
        spec = choose_input(config, data.samples[0])
        store = open_store(data.samples, spec, config.cache_mb)
        device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
        steps = sum(len(epoch_batches(int((fold != k).sum()), config.batch_size, 0, 0)) for k in todo)
        began = time.monotonic()
        with tqdm(total=steps * config.epochs, unit=" batches", disable=None, dynamic_ncols=True) as bar:
            for k in todo:
                say(f"fold {k + 1} of {folds}: {(fold != k).sum()} images train, {(fold == k).sum()} are held out")
                job = build_fold(config, data, fold == k, spec, store, work / f"fold-{k}", device)
                train_fold(job, interrupts, bar)
                done = todo.index(k) + 1
                left = (time.monotonic() - began) / done * (len(todo) - done)
                say(f"fold {k + 1} is complete; about {left:.0f} s left")
    return gather(data, fold, folds, work)


def build_fold(
    config: TrainConfig, data: DataSet, held: NDArray[np.bool_], spec: ImageInput, store: Store, folder: Path,
    device: torch.device,
) -> ClassifierJob:  # fmt: skip
    """The training of one fold, on images of a store that holds all."""
    rows = np.flatnonzero(~held), np.flatnonzero(held)
    train, val = (tuple(data.samples[row] for row in part) for part in rows)
    parts = Parts(data, train, val, count_classes(train, len(data.labels)), spec)
    quiet = config.model_copy(update={"out": folder, "cache_mb": 0, "save_every": _NEVER})
    job = build_classifier(quiet, parts, device, fingerprint="")
    observe = InFold(encode_targets(train, data.task, len(data.labels)), config.gamma)
    return replace(
        job, folder=folder, train_store=Subset(store, rows[0]), val_store=Subset(store, rows[1]), observe=observe
    )


def train_fold(job: ClassifierJob, interrupts: Interrupts, bar: "tqdm[Any]") -> None:
    """Trains one net and leaves what it found in the job's folder, the file that says it is complete last."""
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    at = Progress()
    for epoch in range(job.config.epochs):
        train_epoch(job, at, interrupts, bar)
        store_epoch(job.folder, epoch + 1, predict_validation(job), job.loss)
        at.epoch, at.batch, at.loss_sum = epoch + 1, 0, 0.0
    mean = mean_over_epochs(job.folder, job.config.epochs)
    if mean is None or not isinstance(job.observe, InFold):
        raise RuntimeError("a fold was trained without being watched")
    np.save(job.folder / _HELD_OUT, mean.astype(np.float32))
    draft = job.folder / "draft.npy"
    np.save(draft, job.observe.mean.astype(np.float32))
    shutil.rmtree(job.folder / FOLDER)
    draft.rename(job.folder / _IN_FOLD)


def gather(data: DataSet, fold: Indices, folds: int, work: Path) -> CrossFit:
    """All folds as one; the probabilities stay on disk, in `work`/probabilities.npy."""
    columns = np.load(work / "fold-0" / _HELD_OUT, mmap_mode="r").shape[1]
    p = np.lib.format.open_memmap(
        work / "probabilities.npy", mode="w+", dtype=np.float32, shape=(len(data.samples), columns)
    )
    width = columns if data.task == "multilabel" else 1
    in_fold = np.zeros((len(data.samples), width))
    for k in range(folds):
        p[fold == k] = np.load(work / f"fold-{k}" / _HELD_OUT)
        in_fold[fold != k] += np.load(work / f"fold-{k}" / _IN_FOLD)
    p.flush()
    return CrossFit(p, in_fold / (folds - 1), fold)


def given_labels(samples: Sequence[Sample], data: DataSet) -> NDArray[Any]:
    """(N,) class indices, or (N, C) 0 and 1 for several labels per image."""
    if data.task == "multilabel":
        return encode_targets(samples, "multilabel", len(data.labels))
    return np.array([sample.classes[0] for sample in samples], np.intp)
