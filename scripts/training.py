"""Trains with focal loss: the loop, its checkpoints and its end, the same for a classifier and a detector.

What they do differently is in `scripts.classifier` and `scripts.detector`, behind `scripts.recipes.Recipe`.
"""

import math
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from models.bundle import next_version, write_bundle
from models.errors import InvalidInput
from models.fit import Pixels
from scripts.batches import Indices, decode_sample, epoch_batches
from scripts.checkpoint import BEST, LAST, load_checkpoint, locked, remove_checkpoints, save_checkpoint
from scripts.config import RUN_FOLDER, TrainConfig
from scripts.evaluate import Score
from scripts.interrupts import Interrupted, Interrupts
from scripts.job import build_job, read_parts
from scripts.messages import say, write_left_out
from scripts.recipes import Diverged, Recipe, choose_device, use_threads

_SHOWN_FILES = 8
_SAID_EVERY = 30.0
_MAY_CHANGE = {"data", "out", "version", "threads", "cache_mb", "save_every", "device"}
"""Settings with which a run may be resumed though it was started with others."""


@dataclass
class Progress:
    """How far a training has come: saved with the weights."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    seconds: float = 0.0
    version: str | None = None


def run(config: TrainConfig, interrupts: Interrupts) -> None:
    """Trains as configured and prints the bundle's folder on stdout."""
    say(f"# focalserve train\n{config.as_yaml()}")
    use_threads(config.threads)
    device = choose_device(config.device)
    parts = read_parts(config)
    if config.out is None or config.dry_run:
        sample = decode_sample(parts.train[0], parts.spec)
        say(f"dry run: {len(epoch_batches(len(parts.train), config.batch_size, 0, 0))} batches of {sample.shape}; stop")
        return
    if config.version and (config.out / config.version).exists():
        raise InvalidInput(f"{config.out / config.version} exists already; a version is written once")
    with locked(config.out / RUN_FOLDER):
        write_left_out(config.out / RUN_FOLDER, parts.data.left_out)
        job = build_job(config, parts, device)
        progress = restore(job)
        if progress.version is None:
            fit(job, progress, interrupts)
            progress.version = export(job, progress)
            save(job, progress)
        else:
            say("the training is complete already")
        print(config.out / progress.version)


def restore(job: Recipe) -> Progress:
    """Where to begin: at the start, or with --resume where the last checkpoint says."""
    config, path = job.config, job.folder / LAST
    if config.restart:
        remove_checkpoints(job.folder)
    state = load_checkpoint(path)
    if state is None or (not config.resume and state["progress"]["version"] is not None):
        remove_checkpoints(job.folder)
        return Progress()
    if not config.resume:
        raise InvalidInput(f"{path.parent} holds an unfinished training; add --resume to go on, --restart to drop it")
    then, now = state["identity"], identity(job)
    changed = [f"{name} (was {then.get(name)}, is {now[name]})" for name in now if then.get(name) != now[name]]
    if changed:
        raise InvalidInput(f"cannot resume with other settings: {', '.join(changed)}")
    job.served.net.load_state_dict(state["model"])
    job.optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    say(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch}")
    return progress


def identity(job: Recipe) -> dict[str, Any]:
    """What must be the same when a run is resumed: the settings that shape the weights, and the data."""
    recipe = {name: value for name, value in job.config.recipe().items() if name not in _MAY_CHANGE}
    return {**recipe, "fingerprint": job.fingerprint}


def save(job: Recipe, progress: Progress) -> None:
    """Writes last.pt; weights that are no numbers are never written."""
    weights = job.served.net.state_dict()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Diverged("the weights are no numbers any more; nothing was saved; try a lower --lr")
    state = {"model": weights, "optimizer": job.optimizer.state_dict(), "progress": asdict(progress)}
    save_checkpoint(job.folder / LAST, {**state, "identity": identity(job)})


def fit(job: Recipe, at: Progress, interrupts: Interrupts) -> None:
    """Trains until the last epoch or until patience is spent; leaves the best weights in best.pt."""
    config = job.config
    steps = len(epoch_batches(job.count, config.batch_size, 0, 0))
    done = at.epoch * steps + at.batch
    bar = tqdm(total=config.epochs * steps, initial=done, unit=" batches", disable=None, dynamic_ncols=True)
    began = time.monotonic() - at.seconds
    try:
        with bar:
            while at.epoch < config.epochs and not 0 < config.patience <= at.stale:
                train_epoch(job, at, interrupts, bar)
                scores = job.validate(at.epoch + 1)
                with interrupts.defer():
                    at.seconds = time.monotonic() - began
                    end_epoch(job, at, scores, steps)
                interrupts.check()
        if at.epoch < config.epochs:
            say(f"stopped early: {at.stale} epochs without a better score (--patience)")
    except Interrupted:
        with interrupts.defer():
            at.seconds = time.monotonic() - began
            save(job, at)
        raise


def train_epoch(job: Recipe, at: Progress, interrupts: Interrupts, bar: "tqdm[Any]") -> None:
    """The rest of one epoch, batch by batch."""
    config = job.config
    job.served.train()
    saved = said = time.monotonic()
    batches = epoch_batches(job.count, config.batch_size, config.seed, at.epoch)
    for indices, pixels in job.load(batches[at.batch :]):
        with interrupts.defer():
            rate = learning_rate(config, at.epoch * len(batches) + at.batch, config.epochs * len(batches))
            loss = train_step(job, at, indices, pixels, rate)
            at.batch += 1
            at.loss_sum += loss
            now = time.monotonic()
            if now - saved > config.save_every:
                save(job, at)
                saved = now
        interrupts.check()
        bar.set_postfix(epoch=at.epoch + 1, loss=f"{at.loss_sum / at.batch:.4f}", refresh=False)
        bar.update()
        if bar.disable and now - said > _SAID_EVERY:
            say(f"epoch {at.epoch + 1}, batch {at.batch}/{len(batches)}: loss {at.loss_sum / at.batch:.4f}")
            said = now


def train_step(job: Recipe, at: Progress, indices: Indices, pixels: Pixels, rate: float) -> float:
    """One step of the optimizer; returns the loss. All chance in it follows from (seed, epoch, batch)."""
    config = job.config
    seed = (config.seed, at.epoch, at.batch)
    torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    for group in job.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    loss = job.batch_loss(indices, pixels, seed)
    job.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(job.served.parameters(), config.clip_grad)
    value = float(loss.detach())
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        names = job.names(indices[:_SHOWN_FILES])
        more = f" and {len(indices) - len(names)} more" if len(indices) > len(names) else ""
        raise Diverged(
            f"the loss is {value} and the gradient {float(norm)} in epoch {at.epoch + 1}, batch {at.batch + 1}: "
            f"{', '.join(names)}{more}\nnothing was saved since the last checkpoint; try a lower --lr"
        )
    job.optimizer.step()
    return value


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """A linear rise over the share `warmup` of all steps, then constant or half a cosine down to a hundredth."""
    rise = round(config.warmup * steps)
    if step < rise:
        return config.lr * (step + 1) / rise
    if config.schedule == "constant":
        return config.lr
    return config.lr * (0.01 + 0.495 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))


def end_epoch(job: Recipe, at: Progress, scores: dict[str, Score], steps: int) -> None:
    """Says how the epoch went, keeps its weights if they are as good as the best so far, and saves.

    As good: within one standard error of the best score. Of epochs that the validation part cannot tell apart the
    latest is kept, because by then the learning rate has come down.
    """
    monitored = scores[job.config.monitor]
    score = -monitored.value if job.config.monitor == "nll" else monitored.value
    kept = at.best is None or score >= at.best - monitored.error
    left = at.seconds / (at.epoch + 1) * (job.config.epochs - at.epoch - 1)
    say(
        f"epoch {at.epoch + 1}/{job.config.epochs}: loss {at.loss_sum / steps:.4f}, {job.describe(scores)}; "
        f"{at.seconds:.0f} s, {left:.0f} s left{' *' if kept else ''}"
    )
    if at.best is None or score > at.best:
        at.best, at.stale = score, 0
    else:
        at.stale += 1
    at.epoch, at.batch, at.loss_sum = at.epoch + 1, 0, 0.0
    if kept:
        at.best_epoch = at.epoch
        save_checkpoint(job.folder / BEST, {"model": job.served.net.state_dict(), "epoch": at.epoch})
    save(job, at)


def export(job: Recipe, at: Progress) -> str:
    """Measures the best weights, exports them, and writes the bundle; returns its version."""
    config = job.config
    state = load_checkpoint(job.folder / BEST)
    if state is None:
        raise InvalidInput(f"{job.folder / BEST} is missing; start afresh with --restart")
    job.served.net.load_state_dict(state["model"])
    say(f"kept epoch {at.best_epoch}")
    out = config.out or Path()
    facts = {
        "name": out.absolute().name,
        "version": config.version or next_version(out),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": {**config.recipe(), **asdict(at)},
        "data_fingerprint": job.fingerprint,
    }
    result = job.export(facts, at.epoch)
    say(f"torch and ONNX Runtime differ by {result.card.parity_max_difference:.2g} at most")
    write_bundle(out, result.card, result.graph, result.loss_graph)
    return result.card.version
