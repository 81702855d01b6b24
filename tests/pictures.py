"""Small data sets for the tests of training: drawn pictures, and a part of the embedded garments."""

import csv
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from scripts.garments import unpack


def draw(*, red: bool, bar: bool, seed: int, side: int = 16) -> npt.NDArray[np.uint8]:
    """(side, side, 3) uint8: noise, with a red ground and a white bar across, or without."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (side, side, 3), dtype=np.uint8)
    if red:
        pixels[..., 0] += 120
    if bar:
        row = int(rng.integers(2, side - 4))
        pixels[row : row + 3] = 255
    return pixels


def draw_folders(root: Path, per_class: int = 20, side: int = 16) -> Path:
    """Class folders plain, red, barred."""
    for label, (red, bar) in {"plain": (False, False), "red": (True, False), "barred": (False, True)}.items():
        (root / label).mkdir(parents=True)
        for k in range(per_class):
            Image.fromarray(draw(red=red, bar=bar, seed=k, side=side)).save(root / label / f"{label}_{k:03d}.png")
    return root


def draw_list(root: Path, *, multilabel: bool, count: int = 48, val_from: int = 36) -> Path:
    """A CSV file with a split column: multi-label red and bar, or binary, 1 for a bar; "val" from `val_from` on."""
    root.mkdir(parents=True)
    kinds = itertools.cycle(itertools.product((False, True), repeat=2))
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels" if multilabel else "label", "split"])
        for k, (red, bar) in zip(range(count), kinds, strict=False):
            Image.fromarray(draw(red=red, bar=bar, seed=k)).save(root / f"{k:03d}.png")
            both = "|".join(name for name, there in (("red", red), ("bar", bar)) if there)
            rows.writerow([f"{k:03d}.png", both if multilabel else int(bar), "val" if k >= val_from else "train"])
    return root / "list.csv"


def copy_garments(root: Path, unpacked: Path, classes: Sequence[str], most: int) -> Path:
    """The first images of some classes of the embedded garments, as class folders."""
    unpack(unpacked)
    for label in classes:
        (root / label).mkdir(parents=True)
        for file in sorted((unpacked / "train" / label).iterdir())[:most]:
            shutil.copy(file, root / label / file.name)
    return root


def quiet_environment() -> dict[str, str]:
    """The environment of a training in a process of its own: one thread, as in the tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
