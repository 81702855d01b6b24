"""The net's answers for held-out images after each epoch, kept on disk: their mean knows more than the last one."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.calibration import unweighted_probabilities
from models.card import LabelNoise, LossSpec
from models.online import fit_label_noise
from scripts.evaluate import HeldOut

Floats = NDArray[np.float64]
FOLDER = "heldout"


def store_epoch(folder: Path, epoch: int, held: HeldOut, loss: LossSpec) -> None:
    """Writes heldout/EPOCH.npy, float32: the probabilities without the bias of focal loss and of class weights.

    Args:
        folder: of the run.
        epoch: counts from 1.
        held: the answers.
        loss: of the training.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    np.save(_file(folder, epoch), _unweighted(held, loss).astype(np.float32))


def mean_over_epochs(folder: Path, epochs: int) -> Floats | None:
    """The mean of what was stored of epochs 2 to `epochs` (of 1, where that is all); None where one is missing."""
    files = [_file(folder, epoch) for epoch in range(min(2, epochs), epochs + 1)]
    if not files or not all(file.is_file() for file in files):
        return None
    total = np.asarray(np.load(files[0]), np.float64)
    for file in files[1:]:
        total += np.load(file)
    return total / len(files)


def learn_label_noise(folder: Path, epochs: int, held: HeldOut, loss: LossSpec) -> list[LabelNoise]:
    """What the card keeps of the noise in the validation labels; empty where nothing can be said.

    Args:
        folder: of the run.
        epochs: how many were trained.
        held: the answers of the weights that are exported.
        loss: of the training.
    """
    snapshot = mean_over_epochs(folder, epochs)
    if snapshot is None or snapshot.shape != held.logits.shape:
        return []
    return fit_label_noise(snapshot, _unweighted(held, loss), held.targets)


def _unweighted(held: HeldOut, loss: LossSpec) -> Floats:
    return unweighted_probabilities(held.logits, held.activation, loss.gamma, loss.alpha)


def _file(folder: Path, epoch: int) -> Path:
    return folder / FOLDER / f"{epoch:04d}.npy"
