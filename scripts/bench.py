"""`focalserve bench BUNDLE`: how near the service comes to the machine's limit, limit and service in one run."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.card import ImageInput
from models.errors import FocalserveError, InvalidInput
from models.image import load_input
from scripts.bench_table import Row, median_row, print_rows
from scripts.clients import choose_bundle
from scripts.demo import free_port, wait_ready
from scripts.flags import Flags
from scripts.limits import (
    alone,
    answer_json,
    answering_tensors,
    closed_form,
    limit,
    median_seconds,
    predicting,
    run_batch,
    scoring_boxes,
    scoring_limit,
    tensor_bodies,
    tensor_limit,
)
from scripts.load import Load, labelled_form, loss_body, run_load, seconds_of_one
from service.detector import DetectorEngine
from service.engine import Engine
from service.model_folder import open_pair
from service.served import Bundled
from service.settings import load_settings, usable_cores

_LOSS_ROWS, _LOSS_CLASSES, _LOSS_IMAGES = 100_000, 100, 1_000
_LOSS_PICTURES = 50
"""Pictures with boxes in one request: a detector takes longer for each."""


class BenchFlags(Flags):
    """Measure a bundle: what this process reaches without HTTP, then the service at several concurrencies.

    Both in turns in one run, since a machine's speed changes from minute to minute: believe the ratios.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve bench")

    bundle: CliPositionalArg[Path] = Field(description="a bundle, or a folder with one model")
    image: Path | None = Field(None, description="an image file to send; a made-up JPEG where left out")
    size: str = Field("640x480", description="WIDTHxHEIGHT of the made-up JPEG")
    seconds: Annotated[float, Field(ge=0.2, le=600.0)] = Field(5.0, description="per measurement")
    work: list[Literal["image", "json", "bin", "loss"]] = Field(
        ["image", "json", "bin", "loss"], description="what is sent: encoded images, tensors of /v2, labels to score"
    )
    concurrency: list[Annotated[int, Field(ge=1, le=1024)]] = Field([1, 8, 64], description="connections at once")
    rounds: Annotated[int, Field(ge=1, le=100)] = Field(3, description="turns of limits and service; medians are shown")
    stages: bool = Field(False, description="also a table of where the time of one image goes")


@dataclass(frozen=True)
class Bench:
    """What is measured: a bundle in this process, and the same in a service of its own.

    Attributes:
        flags: as asked for.
        engine: here.
        narrow: the same on one thread, to be run side by side.
        body: the encoded image that is sent.
        service: the other process.
        port: it listens on.
    """

    flags: BenchFlags
    engine: Bundled
    narrow: Bundled
    body: bytes
    service: "subprocess.Popen[bytes]"
    port: int

    @property
    def spec(self) -> ImageInput:
        """The graph's input."""
        return self.engine.card.input

    @property
    def image_type(self) -> str:
        """Media type of the image."""
        return "image/jpeg" if self.body[:2] == b"\xff\xd8" else "image/png"

    def load(self, path: str, headers: dict[str, str], body: bytes) -> Load:
        """A request to the service."""
        return Load("127.0.0.1", self.port, path, headers, body)


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve bench`."""
    flags = BenchFlags.parse(argv)
    folder = choose_bundle(flags.bundle, None)
    body = flags.image.read_bytes() if flags.image else made_up_jpeg(flags.size)
    settings = load_settings([])
    engine, narrow = open_pair(folder, settings.device, settings.threads)
    load_input(body, engine.card.input)
    print(f"{engine.card.name} version {engine.card.version} on {engine.device}, {usable_cores()} cores")
    print(f"image of {len(body)} bytes to {engine.card.input.width} x {engine.card.input.height}")
    if flags.stages:
        print_stages(engine, body)
    with served(folder) as (process, port):
        bench = Bench(flags, engine, narrow or engine, body, process, port)
        rounds = [[row for work in flags.work for row in WORK[work](bench)] for _ in range(flags.rounds)]
    print_rows([median_row(rows) for rows in zip(*rounds, strict=True)])
    return 0


def image_rows(bench: Bench) -> Iterator[Row]:
    """Encoded images to /predict."""
    work = predicting(bench.engine)
    one = alone(bench.spec, work, bench.body)
    yield Row("one image in process", 1.0 / one, None, one * 1e3)
    most = limit(bench.spec, work, predicting(bench.narrow), bench.body, bench.flags.seconds)
    yield Row("image: limit", most)
    yield from service_rows(
        bench, "image", bench.load("/predict", {"Content-Type": bench.image_type}, bench.body), most
    )


def tensor_rows(bench: Bench, kind: str) -> Iterator[Row]:
    """Decoded images to the Open Inference Protocol."""
    body, headers = tensor_bodies(load_input(bench.body, bench.spec).pixels)[kind]
    works = answering_tensors(bench.engine), answering_tensors(bench.narrow)
    most = tensor_limit(bench.spec, *works, kind, body, headers, bench.flags.seconds)
    yield Row(f"{kind} tensor: limit", most)
    path = f"/v2/models/{bench.engine.card.name}/infer"
    yield from service_rows(bench, f"{kind} tensor", bench.load(path, headers, body), most)


def service_rows(bench: Bench, name: str, load: Load, most: float) -> Iterator[Row]:
    """The service at each concurrency."""
    pid = bench.service.pid
    for connections in bench.flags.concurrency:
        before, start = cpu_seconds(pid), time.perf_counter()
        outcome = run_load(load, connections, bench.flags.seconds)
        span, used = time.perf_counter() - start, cpu_seconds(pid) - before
        if outcome.errors:
            raise FocalserveError(f"{outcome.errors} requests failed at concurrency {connections}")
        yield Row(
            f"{name}, concurrency {connections}",
            outcome.per_second,
            outcome.per_second / most,
            outcome.p50_ms,
            outcome.p99_ms,
            used / max(1.0, outcome.per_second * span) * 1e3,
            rss_mb(pid),
        )


def loss_rows(bench: Bench) -> Iterator[Row]:
    """Many labels in one request: rows of logits as binary tensors, and encoded images."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 3.0, (_LOSS_ROWS, _LOSS_CLASSES)).astype(np.float32)
    labels = rng.integers(0, _LOSS_CLASSES, _LOSS_ROWS)
    body, headers = loss_body(logits, labels)
    most = _LOSS_ROWS / median_seconds(lambda: closed_form(logits, labels), 5)
    yield Row(f"loss of {_LOSS_ROWS:,} x {_LOSS_CLASSES} logits: numpy", most)
    yield one_request(
        bench, "the same, service", bench.load("/v2/models/focal_loss/infer", headers, body), _LOSS_ROWS, most
    )
    label, seconds = bench.engine.card.labels[0], bench.flags.seconds
    engine, narrow = bench.engine, bench.narrow
    if isinstance(engine, Engine) and isinstance(narrow, Engine):
        count, most = _LOSS_IMAGES, scoring_limit(engine, narrow, label, bench.body, seconds)
    elif isinstance(engine, DetectorEngine) and isinstance(narrow, DetectorEngine):
        boxes = made_up_boxes(*load_input(bench.body, bench.spec).size, label)
        label, count = json.dumps(boxes), _LOSS_PICTURES
        most = limit(bench.spec, scoring_boxes(engine, boxes), scoring_boxes(narrow, boxes), bench.body, seconds)
    yield Row("images to score: limit", most)
    form, headers = labelled_form(bench.body, bench.image_type, label, count)
    yield one_request(bench, f"loss of {count:,} images", bench.load("/loss", headers, form), count, most)


def one_request(bench: Bench, name: str, load: Load, count: int, most: float) -> Row:
    """One long request at a time, for as long as its limit was measured."""
    before, times = cpu_seconds(bench.service.pid), list[float]()
    while len(times) < 3 or sum(times) < bench.flags.seconds:
        times.append(seconds_of_one(load))
    seconds = float(np.median(times))
    used = (cpu_seconds(bench.service.pid) - before) / len(times)
    speed = count / seconds
    return Row(name, speed, speed / most, seconds * 1e3, None, used / count * 1e3, rss_mb(bench.service.pid))


WORK: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "image": image_rows,
    "json": lambda bench: tensor_rows(bench, "json"),
    "bin": lambda bench: tensor_rows(bench, "bin"),
    "loss": loss_rows,
}


def print_stages(engine: Bundled, body: bytes) -> None:
    """Milliseconds of one image, stage by stage, alone on the machine."""
    spec = engine.card.input
    picture = load_input(body, spec)
    results = run_batch(engine, [picture])
    stages: dict[str, Callable[[], object]] = {
        "decode and resize": lambda: load_input(body, spec),
        "run, batch 1": lambda: run_batch(engine, [picture]),
        "run, batch 32, per image": lambda: run_batch(engine, [picture] * 32),
        "answer as JSON": lambda: answer_json(engine, results),
    }
    for name, run in stages.items():
        each, times = (32, 7) if "batch 32" in name else (1, 50)
        print(f"  {name:28} {median_seconds(run, times) * 1e3 / each:9.4f} ms")


def made_up_boxes(width: int, height: int, label: str) -> list[dict[str, Any]]:
    """Eight boxes of a picture, as /loss takes them."""
    places = [(x / 4.0, y / 2.0) for y in range(2) for x in range(4)]
    return [
        {"box": [x * width, y * height, (x + 0.2) * width, (y + 0.4) * height], "label": label} for x, y in places
    ]  # fmt: skip


def made_up_jpeg(size: str) -> bytes:
    """A JPEG of smooth shapes with some noise, the same every time.

    Raises:
        InvalidInput: the size is not WIDTHxHEIGHT.
    """
    try:
        width, height = (int(side) for side in size.split("x"))
        small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    except ValueError:
        raise InvalidInput("size: should be WIDTHxHEIGHT, such as 640x480") from None
    noise = np.random.default_rng(1).normal(0, 8, (height, width, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


@contextmanager
def served(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """The service with that bundle, in a process of its own, ready."""
    port = free_port(0)
    arguments = ["-m", "service", str(folder), "--port", str(port), "--log-level", "warning", "--drain-seconds", "0"]
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        wait_ready(process, f"http://127.0.0.1:{port}")
        yield process, port
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and those it began, so far; 0 where the system does not tell."""
    return sum((int(fields[11]) + int(fields[12])) / 100.0 for fields in _family(pid).values())


def rss_mb(pid: int) -> float:
    """Resident memory of a process and those it began, MB; 0 where the system does not tell."""
    return sum(int(fields[21]) for fields in _family(pid).values()) * 4096 / 1e6


def _family(pid: int) -> dict[int, list[str]]:
    """What the kernel says of a process and its children, from the state on; empty where it does not."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = file.read_text(encoding="utf-8", errors="replace").rsplit(") ", 1)[1].split()
            one = int(file.parent.name)
            if pid in (one, int(fields[1])):
                found[one] = fields
    return found
