"""A data set cut into training and validation, the same way for the same seed wherever the files lie."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from models.errors import InvalidInput
from scripts.readers import DataSet, Sample

Counts = Counter[int]
Parts = tuple[tuple[Sample, ...], tuple[Sample, ...]]
_NO_LABEL = -1


def split_dataset(data: DataSet, *, fraction: float = 0.15, seed: int = 0) -> Parts:
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
    if not 0 < fraction < 1:
        raise InvalidInput(f"the validation fraction is {fraction}; it must lie between 0 and 1")
    usable = sorted((sample for sample in data.samples if sample.split != "test"), key=data.relative)
    if any(sample.split == "val" for sample in usable):
        chosen = {sample.path for sample in usable if sample.split == "val"}
    else:
        chosen = _draw(data, usable, fraction, seed)
    train = tuple(sample for sample in usable if sample.path not in chosen)
    val = tuple(sample for sample in usable if sample.path in chosen)
    _check_parts(data, train, val)
    return train, val


def _check_parts(data: DataSet, train: Sequence[Sample], val: Sequence[Sample]) -> None:
    if data.task != "multilabel" and len(data.labels) < 2:
        raise InvalidInput(f"all samples are of one class ('{data.labels[0]}'); training needs two or more")
    if not train:
        raise InvalidInput("no sample is left for training")
    counts = _count(train)
    missing = [f"'{label}'" for k, label in enumerate(data.labels) if not counts[k]]
    if missing:
        more = ", ..." if len(missing) > 10 else ""
        raise InvalidInput(f"no training sample of {', '.join(missing[:10])}{more}; add samples or drop the label")
    if not val:
        raise InvalidInput("no sample is left for validation: every class has a single sample or a single group")


def _draw(data: DataSet, samples: Sequence[Sample], fraction: float, seed: int) -> set[Path]:
    """The paths to validate with: whole groups, or single samples where there are none."""
    units: dict[str, list[Sample]] = {}
    for sample in samples:
        # The prefix keeps a group named like a file apart from that file.
        name = f"path:{data.relative(sample)}" if sample.group is None else f"group:{sample.group}"
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


def _count(samples: Sequence[Sample]) -> Counts:
    """How many samples there are of each class, and of no label at all under _NO_LABEL."""
    return Counter(k for sample in samples for k in sample.classes or (_NO_LABEL,))
