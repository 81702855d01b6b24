"""How well wrong boxes are found: given boxes of scenes are spoilt on purpose, and scored as the service scores them.

Beside it ObjectLab on the same detector. The errors are injected: what people get wrong is not measured by this.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.box_causes import NONE, SWAPPED
from models.box_noise import Spoilt
from models.boxes import Indices
from models.bundle import read_bundle
from models.card import ModelCard
from models.errors import FocalserveError
from scripts.box_trials import (
    Scene,
    Trial,
    detect,
    look_at_scenes,
    mixed_noise,
    precisions,
    run_trial,
    separate_noises,
    without_calibrator,
)
from scripts.clients import choose_bundle
from scripts.flags import Flags
from scripts.items import Items, debian_items, embedded_items, merge_items
from scripts.objectlab_bench import Isotonic, calibrate_detections, objectlab_precisions
from scripts.scenes import compose_scenes
from service.detector import DetectorEngine

_OTHER_SCENES = 1_000_000
_COLUMNS = ("calibrator", "plain", "ObjectLab", "calibrated", "its best")
_EXPLAINED = """
calibrator: the card's. plain: without it. ObjectLab: as published, on raw scores. calibrated: the best of 24 variants
of it (raw, unbiased and isotonic scores, the last fitted on other scenes; four high and two low thresholds). its best:
the best of these and of seven more pairs of thresholds of the raw scores: the one to compare with. Both best are chosen
on the test itself, for each line anew."""


class BenchFlags(Flags):
    """Measure how well a detector of the composed scenes finds wrong boxes, beside ObjectLab."""

    model_config = SettingsConfigDict(cli_prog_name="python -m scripts.box_audit_bench")

    bundle: CliPositionalArg[Path] = Field(description="a detector's bundle, trained on scripts.scenes with 5 classes")
    items: Literal["embedded", "debian"] = Field(
        "embedded", description="embedded, or debian: its package dataset-fashion-mnist"
    )
    skip: Annotated[int, Field(ge=0)] = Field(0, description="test items that are left out, from the first on")
    scenes: Annotated[int, Field(ge=1)] = Field(500, description="scenes of the other test items")
    seed: Annotated[int, Field(ge=0)] = Field(101, description="of the scenes; never one that was validated on")
    rounds: Annotated[int, Field(ge=1)] = Field(2, description="times that each scene is spoilt; means are shown")


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    flags = BenchFlags.parse(argv)
    engine = DetectorEngine(read_bundle(choose_bundle(flags.bundle, None)), "cpu", 1)
    items = debian_items("test") if flags.items == "debian" else embedded_items("test")
    merged = _without(merge_items(items), flags.skip)
    scenes, others = (
        look_at_scenes(engine, compose_scenes(merged, flags.scenes, seed))
        for seed in (flags.seed, flags.seed + _OTHER_SCENES)
    )
    seeds = range(flags.seed, flags.seed + flags.rounds)
    print(f"{'average precision':26}{''.join(f'{name:>12}' for name in _COLUMNS)}")
    for name, row in compare(scenes, engine.card, calibrate_detections(others, engine.card), seeds).items():
        print(f"{name:26}{''.join(f'{value:12.3f}' for value in row)}")
    trials = [run_trial(scenes, engine.card, mixed_noise(engine.card), seed) for seed in seeds]
    for name, value in describe_issues(trials).items():
        print(f"{name:26}{value:12.3f}")
    print(_EXPLAINED)
    return 0


def compare(
    scenes: Sequence[Scene], card: ModelCard, isotonic: Isotonic, seeds: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """Average precision by what was done and looked for, the mean over seeds.

    Args:
        scenes: to spoil.
        card: of the detector.
        isotonic: of the detector's scores, from other scenes.
        seeds: of the spoiling.

    Returns:
        Five numbers each: with the card's calibrator, without, and ObjectLab's three of `objectlab_precisions`.
    """
    plain, seen = without_calibrator(card), [detect(scene, card) for scene in scenes]
    rows: dict[str, tuple[float, ...]] = {}
    for name, noise in {**separate_noises(card), "mixed": mixed_noise(card)}.items():
        found = []
        for seed in seeds:
            trial, without = (run_trial(scenes, each, noise, seed) for each in (card, plain))
            found.append((precisions(trial), precisions(without), *objectlab_precisions(trial, seen, card, isotonic)))
        for kind in found[0][0] if name == "mixed" else (name,):
            means = tuple(float(np.mean([one[k][kind] for one in found])) for k in range(len(_COLUMNS)))
            rows[f"mixed: {kind}" if name == "mixed" else kind] = means
    return rows


def describe_issues(trials: Sequence[Trial]) -> dict[str, float]:
    """What `is_issue`, the causes and the suggested classes are worth, over all trials."""
    causes = np.concatenate([trial.causes for trial in trials])
    flagged, said, named = (
        np.concatenate([trial.column(name) for trial in trials]) for name in ("is_issue", "cause", "suggested_labels")
    )
    true = np.concatenate([_true_labels(*pair) for t in trials for pair in zip(t.scenes, t.spoilt, strict=True)])
    wrong = flagged & (causes != NONE)
    return {
        "issues: precision": float(wrong.sum() / max(1, flagged.sum())),
        "issues: recall": float(wrong.sum() / (causes != NONE).sum()),
        "cause right, of found": float((said == causes)[wrong].mean()),
        "class right, of swapped": float((named == true)[causes == SWAPPED].mean()),
    }


def _true_labels(scene: Scene, spoilt: Spoilt) -> Indices:
    """(M,) the class that each given box had; -1 where it was invented."""
    return np.append(scene.truth.labels, -1)[spoilt.origin]


def _without(items: Items, count: int) -> Items:
    return items.take(np.arange(count, len(items.images)))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FocalserveError as error:
        sys.exit(f"box_audit_bench: {error}")
