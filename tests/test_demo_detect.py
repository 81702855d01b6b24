"""The detector's demo: spoilt tiles count every box once; the story itself, on the real photographs, is slow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.boxes import BoxLabels
from models.errors import InvalidInput
from models.image import decode_image
from scripts.box_data import BoxDataSet, BoxSample
from scripts.demo_detect import main, spoil_tiles
from scripts.trees import TILE
from scripts.wheels import fetch_files
from tests.test_trees import INSTALL, PHOTOS


@pytest.fixture
def photograph(tmp_path: Path) -> BoxDataSet:
    """A dark photograph with 150 trees of 20 to 40 pixels."""
    rng = np.random.default_rng(3)
    sides = rng.integers(20, 40, (150, 2))
    corners = rng.integers(0, np.array([700, 520]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float64)
    Image.fromarray(np.zeros((520, 700, 3), np.uint8)).save(tmp_path / "photo.png")
    labels = BoxLabels(boxes, np.zeros(150, np.int64), np.zeros(150, bool), (None,) * 150)
    return BoxDataSet(tmp_path, ("Tree",), (BoxSample(tmp_path / "photo.png", labels, "photo", 700, 520),))


def test_every_spoilt_box_counts_once_and_whole(photograph: BoxDataSet, tmp_path: Path) -> None:
    made = spoil_tiles(photograph, tmp_path / "spoilt")
    counted: dict[object, list[float]] = {}
    for sample in made.tiles.samples:
        x, y = made.corners[sample.path.name]
        assert decode_image(sample.path.read_bytes()).shape == (TILE, TILE, 3)
        for k in np.flatnonzero(~sample.boxes.ignored):
            assert sample.boxes.ids[k] not in counted
            counted[sample.boxes.ids[k]] = (sample.boxes.xyxy[k] + [x, y, x, y]).tolist()
    given = made.spoilt.labels.xyxy
    assert sorted(counted) == list(range(len(given)))  # type: ignore[type-var]
    assert np.allclose([counted[k] for k in range(len(given))], given)


def test_some_boxes_are_spoilt_and_some_left_out(photograph: BoxDataSet, tmp_path: Path) -> None:
    spoilt = spoil_tiles(photograph, tmp_path / "spoilt").spoilt
    assert 3 <= len(spoilt.dropped) <= 20
    assert np.bincount(spoilt.causes, minlength=4).tolist()[2] == 0  # one class: nothing to swap with
    assert (np.bincount(spoilt.causes)[[1, 3]] >= 2).all()


def test_without_a_network_the_demo_stops_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(InvalidInput, match=r"pip download --no-deps deepforest==2\.1\.0 failed: .+") as caught:
        main(["--folder", str(tmp_path / "demo"), "--no-serve"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "demo" / "trees").exists()


def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "thing-1.0-py3-none-any.whl").write_bytes(b"not what was published")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InvalidInput, match=r"thing==1\.0 failed"):
        fetch_files("thing==1.0", "sha256:" + "0" * 64, ["a.txt"], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no aerial photographs: {INSTALL}")
def test_the_demo_tells_its_story_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.cli", "demo-detect", "--no-serve", "--scratch", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--port", "0", "--folder", tmp_path], capture_output=True, text=True, timeout=500, check=False,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "279 trees in one photograph" in done.stdout
    assert "of them wrong on purpose" in done.stdout and "trees were left out" in done.stdout
    assert decode_image((tmp_path / "found.png").read_bytes()).shape[1] > 1000
