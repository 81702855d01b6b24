"""A data set cut into training and validation, the same way for the same seed wherever the files lie."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from models.errors import InvalidInput
from scripts.box_data import BoxDataSet, BoxSample
from scripts.readers import DataSet, Sample

Counts = Counter[int]
_NO_LABEL = -1


class _Drawn(Protocol):
    """What a split has to know of a sample."""

    @property
    def path(self) -> Path: ...
    @property
    def split(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...
    @property
    def classes(self) -> tuple[int, ...]: ...


S = TypeVar("S", bound=_Drawn)
Parts = tuple[tuple[S, ...], tuple[S, ...]]


def split_dataset(data: DataSet, *, fraction: float = 0.15, seed: int = 0) -> Parts[Sample]:
    """Cuts a data set into (training, validation), each ordered by path; samples of split "test" are in neither.

    Where samples are marked "val", those are the validation part and all others the training part. Otherwise about
    `fraction` of every class is drawn: at least one where a class has two samples or more, and never its last one, so
    that a class with a single sample is in training only. Groups stay whole, which can leave a class with few groups
    out of validation. Samples with several labels are drawn for their rarest label first.

    Args:
        data: what was read.
        fraction: of the samples that go to validation, between 0 and 1, both excluded.
        seed: another seed draws other samples.

    Returns:
        Training samples and validation samples; neither is empty.

    Raises:
        InvalidInput: one class only, a class without training samples, nothing to train on or to validate with.
    """
    train, val = _cut(data.samples, data.relative, fraction, seed)
    if data.task != "multilabel" and len(data.labels) < 2:
        raise InvalidInput(f"all samples are of one class ('{data.labels[0]}'); training needs two or more")
    _check_parts(train, val, dict(enumerate(data.labels)))
    return train, val


def split_boxes(data: BoxDataSet, *, fraction: float = 0.15, seed: int = 0) -> Parts[BoxSample]:
    """Cuts a data set of boxes as `split_dataset` does; a picture is drawn for the classes of its boxes.

    Pictures without boxes are shared out as a class of their own. One class is enough, and a class that has no box
    anywhere is no obstacle.

    Args:
        data: what was read.
        fraction: of the boxes of each class that go to validation, between 0 and 1, both excluded.
        seed: another seed draws other samples.

    Returns:
        Training samples and validation samples; neither is empty.

    Raises:
        InvalidInput: a class with boxes but none for training, nothing to train on or to validate with.
    """
    train, val = _cut(data.samples, data.relative, fraction, seed)
    _check_parts(train, val, {k: data.labels[k] for k, count in enumerate(data.counts.tolist()) if count})
    return train, val


def _cut(samples: Sequence[S], relative: Callable[[S], str], fraction: float, seed: int) -> Parts[S]:
    if not 0 < fraction < 1:
        raise InvalidInput(f"the validation fraction is {fraction}; it must lie between 0 and 1")
    usable = sorted((sample for sample in samples if sample.split != "test"), key=relative)
    if any(sample.split == "val" for sample in usable):
        chosen = {sample.path for sample in usable if sample.split == "val"}
    else:
        chosen = _draw(usable, relative, fraction, seed)
    train = tuple(sample for sample in usable if sample.path not in chosen)
    return train, tuple(sample for sample in usable if sample.path in chosen)


def _check_parts(train: Sequence[_Drawn], val: Sequence[_Drawn], needed: dict[int, str]) -> None:
    if not train:
        raise InvalidInput("no sample is left for training")
    counts = _count(train)
    missing = [f"'{label}'" for k, label in needed.items() if not counts[k]]
    if missing:
        more = ", ..." if len(missing) > 10 else ""
        raise InvalidInput(f"no training sample of {', '.join(missing[:10])}{more}; add samples or drop the label")
    if not val:
        raise InvalidInput("no sample is left for validation: every class has a single sample or a single group")


def _draw(samples: Sequence[S], relative: Callable[[S], str], fraction: float, seed: int) -> set[Path]:
    """The paths to validate with: whole groups, or single samples where there are none."""
    units: dict[str, list[S]] = {}
    for sample in samples:
        # The prefix keeps a group named like a file apart from that file.
        name = f"path:{relative(sample)}" if sample.group is None else f"group:{sample.group}"
        units.setdefault(name, []).append(sample)
    order = sorted(units, key=lambda name: hashlib.sha256(json.dumps([seed, name]).encode()).digest())
    chosen = _choose_units([_count(units[name]) for name in order], fraction)
    return {sample.path for unit in chosen for sample in units[order[unit]]}


def _choose_units(units: Sequence[Counts], fraction: float) -> list[int]:
    """Chooses units so that every class comes near `fraction` of its total; greedy, rarest class first.

    Args:
        units: the samples per class in each unit, units in random order.
        fraction: share to choose.

    Returns:
        Indices of the chosen units; no class is chosen whole.
    """
    totals, holders = Counter[int](), defaultdict[int, list[int]](list)
    for unit, counts in enumerate(units):
        totals.update(counts)
        for k in counts:
            holders[k].append(unit)
    targets = {k: min(max(round(total * fraction), 1), total - 1) for k, total in totals.items()}
    taken, chosen = Counter[int](), dict[int, None]()

    def gain(unit: int) -> float:
        # Every class weighs the same, however rare: its distance from the target counts in units of the target.
        return sum(
            (abs(targets[k] - taken[k]) - abs(targets[k] - taken[k] - n)) / max(targets[k], 1)
            for k, n in units[unit].items()
        )

    def spares_some(unit: int) -> bool:
        return all(taken[k] + n < totals[k] for k, n in units[unit].items())

    def take(unit: int) -> None:
        taken.update(units[unit])
        chosen[unit] = None

    rarest_first = sorted(totals, key=lambda k: (totals[k], k))
    for k in rarest_first:
        for unit in holders[k]:
            if taken[k] < targets[k] and unit not in chosen and spares_some(unit) and gain(unit) > 0:
                take(unit)
    for k in rarest_first:
        candidates = [unit for unit in holders[k] if spares_some(unit)]
        if taken[k] == 0 and targets[k] > 0 and candidates:
            take(max(candidates, key=gain))
    return list(chosen)


def _count(samples: Sequence[_Drawn]) -> Counts:
    """How many samples there are of each class, and of no label at all under _NO_LABEL."""
    return Counter(k for sample in samples for k in sample.classes or (_NO_LABEL,))
