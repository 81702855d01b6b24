"""How near a detector's training comes to the net's own speed: `focalserve train`'s loop beside a bare one.

The bare loop has one batch in memory with its targets, and does forward, loss, backward and the optimizer's step on it,
nothing else. Training also picks and changes pictures, moves boxes, matches anchors, clips and looks for what is not
finite. Both in turns, in one process: believe the ratio.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from torch import Tensor
from tqdm import tqdm

from models.errors import InvalidInput
from models.nets.box_losses import collect_targets, detection_losses, find_matches
from scripts.config import choose_task, parse_config
from scripts.detector import DetectorJob
from scripts.flags import Flags
from scripts.interrupts import Interrupts
from scripts.items import embedded_items, merge_items
from scripts.job import build_job, read_parts
from scripts.scenes import SceneSpec, compose_scenes, write_scenes
from scripts.training import Progress, train_epoch

_AERIAL = ("--freeze", "2", "--anchor-ratios", "1", "--turn", "--multi-scale", "0.25")
_NETS = {"small": (128, 16, ()), "mobilenet_v2": (256, 8, _AERIAL)}
"""Side of the scenes, images of a batch, and further flags: as in the documentation."""


class TrainBenchFlags(Flags):
    """Print images a second of training and of a bare loop. Example: python -m scripts.train_bench."""

    model_config = SettingsConfigDict(cli_prog_name="python -m scripts.train_bench")

    steps: Annotated[int, Field(ge=1)] = Field(20, description="of each measurement")
    rounds: Annotated[int, Field(ge=1)] = Field(5, description="turns of both; medians are shown")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0: as torch chooses")


def main(argv: Sequence[str]) -> int:
    """Measures each net and prints the table."""
    flags = TrainBenchFlags.parse(argv)
    if flags.threads:
        torch.set_num_threads(flags.threads)
    print(f"{flags.rounds} turns of {flags.steps} steps, {torch.get_num_threads()} threads, images a second")
    print("| net | side | batch | training | bare loop | ratio |\n|---|--:|--:|--:|--:|--:|", flush=True)
    for name, (side, size, more) in _NETS.items():
        with TemporaryDirectory() as folder:
            job = open_job(Path(folder), name, side, size, flags.steps, more)
        seconds = alternate((training(job), bare_loop(job, flags.steps)), flags.rounds)
        trained, bare = (flags.steps * size / each for each in seconds)
        print(f"| {name} | {side} | {size} | {trained:.1f} | {bare:.1f} | {trained / bare:.2f} |", flush=True)
    return 0


def open_job(folder: Path, net: str, side: int, size: int, steps: int, more: Sequence[str]) -> DetectorJob:
    """A training on composed scenes, an epoch of which has so many steps; its pictures are in memory."""
    scenes = compose_scenes(merge_items(embedded_items("train")), steps * size, 0, SceneSpec(side=side))
    data = write_scenes(folder / "scenes", {"train": scenes, "val": scenes})
    flags = ["--out", str(folder / "m"), "--net", net, "--batch-size", str(size), "--device", "cpu", *more]
    config = choose_task(parse_config([str(data), *flags]))
    job = build_job(config, read_parts(config), torch.device("cpu"))
    assert isinstance(job, DetectorJob)
    return job


def training(job: DetectorJob) -> Callable[[], None]:
    """One epoch of the loop of `focalserve train`, without its validation."""
    return lambda: train_epoch(job, Progress(), Interrupts(), tqdm(disable=True))


def bare_loop(job: DetectorJob, steps: int) -> Callable[[], None]:
    """The same number of steps on the first batch, made ready beforehand."""
    rows = np.arange(job.config.batch_size)
    boxes = [job.train_boxes[k] for k in rows]
    matches = [find_matches(job.anchors, own, job.parts.detector) for own in boxes]
    targets = collect_targets(job.anchors, boxes, matches)
    images = job.served.normalize(torch.from_numpy(job.train_store.take(rows)))
    anchors = cast(Tensor, job.served.anchors)

    def run() -> None:
        job.served.train()
        for _ in range(steps):
            logits, deltas = job.served.net(images)
            classes, places = detection_losses(logits, deltas, targets, anchors, job.loss, job.config.box_loss)
            job.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(classes + job.config.box_weight * places)
            job.optimizer.step()

    return run


def alternate(works: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Median seconds of each work, run in turns; a first turn does not count."""
    seen: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for work, own in zip(works, seen, strict=True):
            began = time.perf_counter()
            work()
            if turn:
                own.append(time.perf_counter() - began)
    return [median(own) for own in seen]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InvalidInput as error:
        sys.exit(f"train_bench: {error}")
