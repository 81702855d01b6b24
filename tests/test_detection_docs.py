"""What docs/detection.md says of the graph alone, run as it is written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.image import ImageLimits, load_input
from scripts.clients import open_bundle
from tests.conftest import noise, png

DOCS = (Path(__file__).parents[1] / "docs" / "detection.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_the_graph_gives_without_focalserve_what_the_bundle_gives(detector_artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(detector_artifacts, tmp_path / "detectors")
    picture = png(np.kron(noise(40, 60, 3), np.ones((8, 8, 1), np.uint8)))
    (tmp_path / "scene.png").write_bytes(picture)
    block = BLOCK.replace("np.array([0.3]", "np.array([0.05]")  # fresh weights are sure of nothing
    done = subprocess.run(
        [sys.executable, "-I", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    rows = [re.fullmatch(r"(\w+) ([\d.]+) \[(.*)\]", line) for line in done.stdout.splitlines()]
    found = [(row[1], float(row[2]), [float(side) for side in row[3].split(", ")]) for row in rows if row]
    model = open_bundle(detector_artifacts / "scenes" / "1", "cpu", None)
    (answer,) = model.predict([("scene.png", picture)], {"score_threshold": 0.05, "max_detections": 20})
    assert len(found) == len(rows) == len(answer["boxes"]) == 20
    for (label, score, box), one in zip(found, answer["boxes"], strict=True):
        assert label == one["label"] and score == pytest.approx(one["score"], abs=6e-4)
        assert box == pytest.approx(one["box"], abs=0.06)


def test_its_words_of_raw_outputs_hold(detector_artifacts: Path) -> None:
    from models.boxes import decode_boxes, make_anchors
    from models.bundle import read_bundle
    from models.nets.graphs import open_session

    bundle = read_bundle(detector_artifacts / "scenes" / "1")
    spec, detector = bundle.card.input, bundle.card.detector
    assert detector is not None
    page = load_input(png(noise(spec.height, spec.width, 1)), spec, ImageLimits()).pixels[None]
    names = ["cls_logits", "box_deltas", "boxes", "scores", "classes"]
    logits, deltas, boxes, scores, classes = open_session(bundle.graph).run(
        names, {"image": page, "score_threshold": np.array([0.05], np.float32)}
    )
    decoded = decode_boxes(deltas[0], make_anchors(detector, spec.height, spec.width))
    best = int(np.argmax(scores))
    anchor = int(np.argmax(logits[0, :, classes[best]]))
    inside = np.clip(decoded[anchor], 0, [spec.width, spec.height] * 2)
    assert boxes[best] == pytest.approx(inside, abs=0.01)
