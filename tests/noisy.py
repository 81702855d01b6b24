"""Labels whose truth is known: the stored out-of-fold probabilities of real images, and calibrated synthetic ones.

tests/data/label_ranking.npz holds 13 settings (5,000 Fashion-MNIST training images each, balanced or long-tailed 100 to
1, noise injected at 5, 10 or 20 %): `_p` the mean out-of-fold softmax over epochs 2 to 7 of a small CNN, `_in` the mean
in-fold probability of the given label, `_y` given and `_t` true classes; and two sets of probabilities that are not
calibrated, of a focal-trained and a balanced-softmax net.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

STORED = Path(__file__).parent / "data" / "label_ranking.npz"
CELLS = [
    *(f"{balance}_{kind}_{rate}" for balance in ("bal", "lt") for kind in ("sym", "pair") for rate in (5, 10, 20)),
    "lt_psym_10",
]


@dataclass(frozen=True)
class Cell:
    """One setting: p (N, K), in_fold (N,), given and true (N,)."""

    p: Floats
    in_fold: Floats
    given: Indices
    true: Indices

    @property
    def wrong(self) -> Bools:
        return np.asarray(self.given != self.true)


@cache
def load(name: str) -> Cell:
    with np.load(STORED) as arrays:
        p, in_fold, given, true = (arrays[f"{name}_{part}"] for part in ("p", "in", "y", "t"))
    return Cell(p.astype(np.float64), in_fold.astype(np.float64), given.astype(np.intp), true.astype(np.intp))


def load_uncalibrated(name: str) -> tuple[Floats, Indices]:
    """p (N, K) of `focal` or `balanced`, and the given labels; both for the images of lt_sym_10."""
    with np.load(STORED) as arrays:
        return arrays[f"{name}_p"].astype(np.float64), arrays["lt_sym_10_y"].astype(np.intp)


def synthesize(classes: int, count: int, rate: float, kind: str, seed: int) -> Cell:
    """Probabilities that are exactly those of the given label, noise included; kinds: sym, pair, mix."""
    rng = np.random.default_rng(seed)
    main, rows = rng.integers(0, classes, count), np.arange(count)
    z = rng.normal(0.0, 1.5, (count, classes))
    z[rows, main] += np.log(classes) + rng.gamma(2.0, 3.0, count)
    for step in (1, 2, 3):
        z[rows, (main + step) % classes] += rng.gamma(1.0, 2.0, count) + 0.6 * np.log(classes)
    clean = np.exp(z - z.max(axis=1, keepdims=True))
    clean /= clean.sum(axis=1, keepdims=True)
    transition = noise_matrix(classes, rate, kind, rng)
    true = draw(rng, clean)
    given = draw(rng, transition[true])
    return Cell(clean @ transition, np.full(count, 0.5), given, true)


def noise_matrix(classes: int, rate: float, kind: str, rng: np.random.Generator) -> Floats:
    out = np.full((classes, classes), rate / (classes - 1))
    if kind == "pair":
        out = rate * np.roll(np.eye(classes), 1, axis=1)
    elif kind == "mix":
        out = rng.dirichlet(np.full(classes, 0.2), classes)
        np.fill_diagonal(out, 1e-12)
        out *= (rate * rng.uniform(0.3, 1.7, classes) / out.sum(axis=1))[:, None]
    np.fill_diagonal(out, 0.0)
    np.fill_diagonal(out, 1.0 - out.sum(axis=1))
    return out


def draw(rng: np.random.Generator, p: Floats) -> Indices:
    return np.asarray(np.minimum((p.cumsum(axis=1) < rng.random(len(p))[:, None]).sum(axis=1), p.shape[1] - 1))


def average_precision(quality: Floats, wrong: Bools) -> float:
    found = wrong[np.argsort(quality, kind="stable")]
    return float((np.cumsum(found)[found] / (np.flatnonzero(found) + 1)).mean())
