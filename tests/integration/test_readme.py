"""Every command and every Python block of README, run as written in a folder like the one it describes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.demo import free_port, wait_ready
from scripts.items import Part, embedded_items, merge_items
from scripts.scenes import compose_scenes, write_scenes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BY_HAND = ("make ", "python3 -m venv", ".venv/bin/pip", "focalserve demo", "focalserve serve")
"""What other tests or the gate itself run: the environment, the demo, the server that the fixture starts."""

OF_BOXES = ("detectors", "127.0.0.1:8001")
"""What is in the commands for the detector, which has a data set and a service of its own."""

pytestmark = pytest.mark.slow


def commands() -> list[str]:
    """The shell commands of the sh blocks and of the table, in README's order."""
    found = []
    pattern = r"```sh\n(?P<block>.*?)```|^\| `(?P<row>focalserve [^`]+)` \|"
    for match in re.finditer(pattern, README, re.DOTALL | re.MULTILINE):
        text = match["block"] or match["row"]
        found += [line for line in re.findall(r"(?:'[^']*'|[^'\n])+", text.replace("\\\n", " ")) if line.strip()]
    return [line for line in found if not line.startswith(BY_HAND)]


def is_of_boxes(command: str) -> bool:
    """Whether a command is about the detector."""
    return any(text in command for text in OF_BOXES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in two class folders, and one beside them."""
    root = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    for name, level in (("heron", 60), ("crane", 190)):
        for i in range(20):
            pixels = np.clip(random.normal(level, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            path = root / "photos" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (root / "decisions.csv").write_text("image,label\nheron/3.jpg,crane\n", encoding="utf-8")
    labels = [{"id": str(k), "logits": [1.0, -1.0], "label": k % 2} for k in range(6)]
    (root / "labels.ndjson").write_text("".join(json.dumps(row) + "\n" for row in labels), encoding="utf-8")
    given = random.integers(0, 3, 200)
    np.savez(root / "rows.npz", logits=random.normal(0, 1, (200, 3)) + 4 * np.eye(3)[given], labels=given)
    (root / "bird.jpg").write_bytes((root / "photos/heron/0.jpg").read_bytes())
    return root


@pytest.fixture(scope="module")
def port() -> int:
    """A free port, in the place of README's 8000."""
    return free_port(0)


@pytest.fixture(scope="module")
def box_port() -> int:
    """A free port, in the place of README's 8001."""
    return free_port(0)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The folder after README's own training command."""
    command = next(line for line in commands() if line.startswith("focalserve train"))
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def served(trained: Path, port: int) -> Iterator[Path]:
    """The folder with the service running, as README starts it."""
    assert "focalserve serve artifacts\n" in README
    with serving(trained, "artifacts", port):
        yield trained


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, box_port: int) -> Iterator[Path]:
    """A folder of a few composed scenes, README's detector trained on them, and its service running."""
    root = tmp_path_factory.mktemp("boxes")
    parts: dict[str, Part] = {"train": "train", "val": "test"}
    scenes = {name: compose_scenes(merge_items(embedded_items(part)), 12, 0) for name, part in parts.items()}
    write_scenes(root / "scenes", scenes)
    (root / "scene.png").write_bytes((root / "scenes/images/val_00000.png").read_bytes())
    command = next(line for line in commands() if line.startswith("focalserve train") and is_of_boxes(line))
    done = run(command, root)
    assert done.returncode == 0, done.stderr
    assert "focalserve serve detectors --port 8001\n" in README
    with serving(root, "detectors", box_port):
        yield root


@contextmanager
def serving(folder: Path, models: str, port: int) -> Iterator[None]:
    """A service of the models in a folder, while it runs."""
    arguments = ["serve", models, "--port", str(port), "--drain-seconds", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", *arguments],
        cwd=folder,
        env=environment() | {"FOCALSERVE_AUDIT_DIR": str(folder / "audits")},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_ready(process, f"http://127.0.0.1:{port}")
        yield
    finally:
        process.terminate()
        assert process.wait(20) == 0


def environment() -> dict[str, str]:
    """The commands of this environment first in the path."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run(command: str, folder: Path, port: int = 0) -> "subprocess.CompletedProcess[str]":
    """Runs a command of README there, with the service at that port."""
    text = re.sub(r"127\.0\.0\.1:800[01]", f"127.0.0.1:{port}", command).replace("photos/*.jpg", "photos/*/*.jpg")
    return subprocess.run(
        ["bash", "-euc", text], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def test_readme_holds_the_commands_that_these_tests_think_it_holds() -> None:
    verbs = {line.split()[1] for line in commands() if line.startswith("focalserve")}
    assert verbs == {"train", "audit", "audit-rows", "apply", "predict", "loss", "info", "doctor", "bench"}
    assert sum(line.startswith("curl") for line in commands()) >= 3


ASKING = [line for line in commands() if not line.startswith("focalserve train")]


@pytest.mark.parametrize("command", [line for line in ASKING if is_of_boxes(line)])
def test_a_command_for_the_detector_works_as_written(command: str, detector: Path, box_port: int) -> None:
    done = run(command, detector, box_port)
    assert done.returncode == 0, done.stderr
    if command.startswith("curl"):
        assert '"model":{"name":"scenes"' in done.stdout and '"boxes":[' in done.stdout
        assert '"error"' not in done.stdout
    if " loss " in command:
        assert (detector / "boxes.csv").read_text(encoding="utf-8").startswith("kind,rank,image,box")
    if " predict " in command:
        assert (detector / "found.csv").read_text(encoding="utf-8").startswith("image,label,score,x1,y1,x2,y2")


@pytest.mark.parametrize("command", [line for line in ASKING if not is_of_boxes(line)])
def test_a_command_of_readme_works_as_written(command: str, served: Path, port: int) -> None:
    done = run(command, served, port)
    assert done.returncode == 0, done.stderr
    if command.startswith("curl"):
        assert '"model":{"name":"birds"' in done.stdout or "/v2/" in command
        assert '"error"' not in done.stdout
    if " apply " in command:
        assert not (served / "corrected" / "heron" / "3.jpg").exists()
        assert len(list((served / "corrected" / "crane").glob("*.jpg"))) == 21
        assert "crane" in (served / "corrected" / "changes.csv").read_text(encoding="utf-8")
    if "--out issues.csv" in command:
        assert (served / "issues.csv").read_text(encoding="utf-8").startswith("rank,image,given_label")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_a_python_block_of_readme_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_page_that_readme_links_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_file_that_the_map_names_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    floor = {"scripts": ROOT / "scripts", "service": ROOT / "service", "models": ROOT / "models"}
    current, missing = ROOT, []
    for line in re.search(r"```\n(.*?)```", text, re.DOTALL)[1].splitlines():  # type: ignore[index]
        head = re.match(r"(\w+)/", line)
        current = floor[head[1]] if head else current
        missing += [name for name in re.findall(r"\b\w+\.py\b", line) if not list(current.rglob(name))]
    assert missing == []
