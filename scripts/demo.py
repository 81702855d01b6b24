"""`focalserve demo`: the story of README in one command, on the embedded garments with 5 % wrong labels in them."""

import base64
import csv
import io
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated

import httpx
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from models.errors import FocalserveError
from scripts.cli import main as focalserve
from scripts.clients import RemoteModel
from scripts.flags import Flags
from scripts.garments import Flip, read_flips, unpack
from scripts.readers import read_dataset
from scripts.score import score_dataset
from scripts.splits import split_dataset

MODEL = "garments"
_CHUNK = 100
_INTERRUPTED = 130
_SHARES = (0.01, 0.05, 0.10)


class DemoFlags(Flags):
    """Train, export, serve, classify, and find the wrong labels, on real images; about three minutes on two cores."""

    model_config = SettingsConfigDict(cli_prog_name="focalserve demo")

    folder: Path = Field(Path("demo"), description="where data and bundles go; what is there already is used again")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="of the service; a free one if it is taken")
    epochs: Annotated[int, Field(ge=1)] = Field(12, description="of each of the three trainings")
    serve: bool = Field(True, description="leave the service running at the end")


def main(argv: Sequence[str]) -> int:
    """Runs the demo; ends with the service running unless --no-serve."""
    flags = DemoFlags.parse(argv)
    start = time.monotonic()
    data = prepare_data(flags.folder)
    say(
        "1. Train with focal loss, calibrate, export to ONNX; then a model on each half, for honest scores of the other"
    )
    for name, source, alpha in (
        (MODEL, data / "train", "class-balanced"),
        ("half-a", data / "half-a.csv", "none"),  # class weights would bias the ranking of labels by class
        ("half-b", data / "half-b.csv", "none"),
    ):
        if not list((flags.folder / "artifacts" / name).glob("*/card.json")):
            train(flags, name, source, alpha)
    port = free_port(flags.port)
    say("2. Serve all three")
    with service(flags.folder / "artifacts", port, MODEL) as (process, url):
        say("3. Classify the test part over HTTP")
        classify(url, data / "test")
        say("4. Ask /loss about the training labels, each by the model that has not seen it")
        find_wrong_labels(url, data)
        say(f"done in {time.monotonic() - start:.0f} s")
        if flags.serve:
            print(suggestions(url, data), flush=True)
            process.wait()
    return 0


def prepare_data(folder: Path) -> Path:
    """Unpacks the garments and lists their training part in two halves, stratified by class."""
    data = (folder / "data").resolve()  # as the readers give paths
    unpack(data)
    half_a, half_b = split_dataset(read_dataset(data / "train"), fraction=0.5, seed=0)
    for name, samples in (("half-a", half_a), ("half-b", half_b)):
        with (data / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("image", "label"))
            rows.writerows((one.path.relative_to(data).as_posix(), one.path.parent.name) for one in samples)
    return data


def train(flags: DemoFlags, name: str, source: Path, alpha: str) -> None:
    """Runs `focalserve train` as a person would."""
    out = flags.folder / "artifacts" / name
    run_verb("train", str(source), "--out", str(out), "--epochs", str(flags.epochs), "--alpha", alpha, "--restart")


def run_verb(*arguments: str) -> None:
    """Shows a focalserve command and runs it, in this process: torch loads once, however many there are.

    Raises:
        FocalserveError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    print(f"$ focalserve {shlex.join(arguments)}", file=sys.stderr, flush=True)
    with redirect_stdout(io.StringIO()):
        code = focalserve(arguments)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise FocalserveError(f"focalserve {arguments[0]} failed; its message stands above")


@contextmanager
def service(artifacts: Path, port: int, model: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """The service of that default model as a process of its own, ready; stopped at the end."""
    arguments = ["serve", str(artifacts), "--port", str(port), "--default-model", model, "--drain-seconds", "0"]
    print(f"$ focalserve {shlex.join(arguments)}", file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, "-m", "scripts.cli", *arguments])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(process, url)
        yield process, url
    finally:
        process.terminate()
        process.wait()


def wait_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Waits until /readyz says 200.

    Raises:
        FocalserveError: the process ended, or a minute passed.
    """
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise FocalserveError("the service did not become ready")


def classify(url: str, folder: Path) -> None:
    """Classifies every test image through POST /predict and prints accuracy and macro-F1."""
    files = sorted(folder.glob("*/*.png"))
    truth = [file.parent.name for file in files]
    said: list[str] = []
    with RemoteModel(url, MODEL) as model:
        for start in range(0, len(files), _CHUNK):
            chunk = [(file.name, file.read_bytes()) for file in files[start : start + _CHUNK]]
            said += [answer["label"] for answer in model.predict(chunk, {"top_k": 1})]
    right = Counter(t for t, s in zip(truth, said, strict=True) if t == s)
    f1 = [2 * right[name] / (truth.count(name) + said.count(name)) for name in sorted(set(truth))]
    print(f"   {len(files)} test images: accuracy {right.total() / len(files):.3f}, macro-F1 {sum(f1) / len(f1):.3f}")


def find_wrong_labels(url: str, data: Path) -> None:
    """Scores all training labels out of sample and counts how many of the recorded flips rank worst."""
    rows = []
    for half, other in (("half-a", "half-b"), ("half-b", "half-a")):
        with RemoteModel(url, other) as model:
            rows += score_dataset(model, read_dataset(data / f"{half}.csv"), _CHUNK, {})
    rows.sort(key=lambda row: row["label_score"])
    flips = {name: flip for name, flip in read_flips().items() if any_row(rows, name)}
    print(f"   {len(rows)} labels scored; {len(flips)} of them were made wrong on purpose. Among the worst ...")
    for share in _SHARES:
        worst = rows[: round(share * len(rows))]
        found = [row for row in worst if Path(row["image"]).name in flips]
        print(
            f"   ... {share:4.0%} ({len(worst):3d} labels) are {len(found):3d} of them "
            f"({len(found) / max(1, len(flips)):.0%} found, {len(found) / len(worst):.0%} of the list wrong on purpose)"
        )
    print_suggestions(rows, flips)


def any_row(rows: Sequence[dict[str, object]], name: str) -> bool:
    """Whether an image of that file name was scored."""
    return any(Path(str(row["image"])).name == name for row in rows)


def print_suggestions(rows: Sequence[dict[str, object]], flips: dict[str, Flip]) -> None:
    """How often the suggested label of a found flip is its true one."""
    suggested = [row for row in rows if Path(str(row["image"])).name in flips and row["suggested_label"]]
    right = sum(row["suggested_label"] == flips[Path(str(row["image"])).name].true for row in suggested)
    print(f"   for {len(suggested)} of them another label was suggested; {right} times the true one")


def suggestions(url: str, data: Path) -> str:
    """Where the service is and three commands to try."""
    image = sorted((data / "test").glob("*/*.png"))[0]
    encoded = base64.b64encode(image.read_bytes()).decode()
    return f"""
The service runs at {url} (Ctrl-C ends it). Open it in a browser, or try:
  curl --data-binary @{image} -H 'Content-Type: image/png' '{url}/predict?top_k=3'
  curl --data-binary @{image} -H 'Content-Type: image/png' '{url}/loss?label=Trouser'
  curl -H 'Content-Type: application/json' {url}/loss -d '{{"inputs": [{{"image": "{encoded}", "label": "Bag"}}]}}'"""


def free_port(wanted: int) -> int:
    """The wanted port, or a free one where that is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise FocalserveError("there is no free port")


def say(text: str) -> None:
    """A heading of the story."""
    print(f"\n{text}", file=sys.stderr, flush=True)
