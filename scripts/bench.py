"""`focalserve bench BUNDLE`: how near the service comes to the machine's limit, limit and service in one run."""

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic_core import to_json
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from models.bundle import read_bundle
from models.errors import FocalserveError, InvalidInput
from models.image import load_input
from scripts.clients import choose_bundle
from scripts.demo import free_port, wait_ready
from scripts.flags import Flags
from scripts.load import Load, run_load
from service.engine import Engine
from service.predictions import answer_rows, predict_items
from service.settings import usable_cores

_BATCHES = (1, 8, 32)


class BenchFlags(Flags):
    """Measure a bundle: the in-process limit of decode, resize and run, then the service at several concurrencies.

    Both in turns in one run, since a machine's speed changes from minute to minute: believe the ratios.
    """

    model_config = SettingsConfigDict(cli_prog_name="focalserve bench")

    bundle: CliPositionalArg[Path] = Field(description="a bundle, or a folder with one model")
    image: Path | None = Field(None, description="an image file to send; a made-up JPEG where left out")
    size: str = Field("640x480", description="WIDTHxHEIGHT of the made-up JPEG")
    seconds: Annotated[float, Field(ge=0.2, le=600.0)] = Field(5.0, description="per measurement")
    concurrency: list[Annotated[int, Field(ge=1, le=1024)]] = Field([1, 8, 64], description="connections at once")
    rounds: Annotated[int, Field(ge=1, le=100)] = Field(3, description="turns of limit and service; medians are shown")
    stages: bool = Field(False, description="also a table of where the time of one image goes")


@dataclass(frozen=True)
class Row:
    """One measured line.

    Attributes:
        name: of the line.
        per_second: images per second.
        p50_ms: median latency; None for the limit.
        p99_ms: 99th percentile.
        cpu_ms: processor time of the service per image.
        rss_mb: memory of the service after it.
    """

    name: str
    per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_ms: float | None = None
    rss_mb: float | None = None


def main(argv: Sequence[str]) -> int:
    """Runs `focalserve bench`."""
    flags = BenchFlags.parse(argv)
    folder = choose_bundle(flags.bundle, None)
    body = flags.image.read_bytes() if flags.image else made_up_jpeg(flags.size)
    engine = Engine(read_bundle(folder), "auto", usable_cores())
    load_input(body, engine.card.input)
    print(f"{engine.card.name} version {engine.card.version} on {engine.device}, {usable_cores()} cores")
    print(f"image of {len(body)} bytes to {engine.card.input.width} x {engine.card.input.height}")
    if flags.stages:
        print_stages(engine, body)
    with served(folder) as (process, port):
        rounds = [list(one_round(flags, engine, body, process, port)) for _ in range(flags.rounds)]
    print_rows([median_row(rows) for rows in zip(*rounds, strict=True)])
    return 0


def one_round(
    flags: BenchFlags, engine: Engine, body: bytes, process: "subprocess.Popen[bytes]", port: int
) -> Iterator[Row]:
    """The limit, the latency of one image in process, and the service at each concurrency."""
    yield Row("one image in process", 1.0 / alone(engine, body), alone(engine, body) * 1e3)
    yield Row("limit: best batch in process", limit(engine, body, flags.seconds))
    load = Load("127.0.0.1", port, "/predict", "image/jpeg" if body[:2] == b"\xff\xd8" else "image/png", body)
    for connections in flags.concurrency:
        before, start = cpu_seconds(process.pid), time.perf_counter()
        outcome = run_load(load, connections, flags.seconds)
        span, used = time.perf_counter() - start, cpu_seconds(process.pid) - before
        if outcome.errors:
            raise FocalserveError(f"{outcome.errors} requests failed at concurrency {connections}")
        images = max(1.0, outcome.per_second * span)
        yield Row(
            f"service, concurrency {connections}",
            outcome.per_second,
            outcome.p50_ms,
            outcome.p99_ms,
            used / images * 1e3,
            rss_mb(process.pid),
        )


def alone(engine: Engine, body: bytes) -> float:
    """Seconds for one image in this process: decode, resize, run, answer; the median of 30."""
    card = engine.card

    def once() -> None:
        logits = engine.run(load_input(body, card.input).pixels[None])
        to_json(predict_items(card, answer_rows(card, logits), [None], 5))

    return median_seconds(once, 30)


def limit(engine: Engine, body: bytes, seconds: float) -> float:
    """Images per second of the same stages in process, no HTTP: decoded on all cores, run in the best batch."""
    card = engine.card
    best = 0.0
    with ThreadPoolExecutor(usable_cores()) as pool:
        for size in _BATCHES:
            until = time.perf_counter() + seconds / len(_BATCHES)
            start, done = time.perf_counter(), 0
            pending = [pool.submit(load_input, body, card.input) for _ in range(size)]
            while time.perf_counter() < until:
                ready = [one.result().pixels for one in pending]
                pending = [pool.submit(load_input, body, card.input) for _ in range(size)]
                to_json(predict_items(card, answer_rows(card, engine.run(np.stack(ready))), [None] * size, 5))
                done += size
            best = max(best, done / (time.perf_counter() - start))
    return best


def print_stages(engine: Engine, body: bytes) -> None:
    """Milliseconds of one image, stage by stage, alone on the machine."""
    card = engine.card
    pixels = load_input(body, card.input).pixels
    logits = engine.run(pixels[None])
    answers = answer_rows(card, logits)
    stages: dict[str, Callable[[], object]] = {
        "decode and resize": lambda: load_input(body, card.input),
        "run, batch 1": lambda: engine.run(pixels[None]),
        "run, batch 32, per image": lambda: engine.run(np.broadcast_to(pixels, (32, *pixels.shape)).copy()),
        "probabilities": lambda: answer_rows(card, logits),
        "answer to JSON": lambda: to_json(predict_items(card, answers, [None], 5)),
    }
    for name, run in stages.items():
        each = 32 if "batch 32" in name else 1
        print(f"  {name:28} {median_seconds(run, 50) * 1e3 / each:9.4f} ms")


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Median seconds of a call."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def median_row(rows: Sequence[Row]) -> Row:
    """The medians of the same line in several rounds."""

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    return Row(
        rows[0].name,
        middle([row.per_second for row in rows]) or 0.0,
        middle([row.p50_ms for row in rows]),
        middle([row.p99_ms for row in rows]),
        middle([row.cpu_ms for row in rows]),
        middle([row.rss_mb for row in rows]),
    )


def print_rows(rows: Sequence[Row]) -> None:
    """The table; ratio is images per second over the limit's."""
    most = rows[1].per_second
    print(f"{'':30} {'images/s':>9} {'ratio':>6} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>7} {'RSS MB':>7}")
    for row in rows:
        cells = [f"{row.per_second:9.1f}", f"{row.per_second / most:6.2f}"]
        for value, form in ((row.p50_ms, "8.2f"), (row.p99_ms, "8.2f"), (row.cpu_ms, "7.3f"), (row.rss_mb, "7.0f")):
            cells.append(" " * (int(form[0]) - 1) + "-" if value is None else format(value, form))
        print(f"{row.name:30} {' '.join(cells)}")


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
    """Processor time of a process so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(") ", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100.0


def rss_mb(pid: int) -> float:
    """Resident memory of a process, MB; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6
