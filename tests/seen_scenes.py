"""What a trained detector says of composed scenes, stored: tests of label scores on it need no training.

`python -m tests.seen_scenes BUNDLE` makes tests/data/seen_scenes.npz anew, from a detector of 5 classes that was
trained on all of Fashion-MNIST's training items and calibrated on scenes of the first half of its test items.
"""

import sys
from pathlib import Path

import numpy as np

from models.boxes import BoxLabels, make_anchors
from models.bundle import read_bundle
from models.card import ModelCard
from models.class_logits import HostLogits
from models.detect import Geometry, detector_of
from scripts.box_trials import Scene, look_at_scenes
from scripts.items import debian_items, merge_items
from scripts.scenes import compose_scenes
from service.detector import DetectorEngine

PATH = Path(__file__).parent / "data" / "seen_scenes.npz"
_LOGIT, _DELTA = 12.0, 48.0
_SEEN = -4.0
_COUNT, _SEED, _SKIP = 150, 202, 5000


def load() -> tuple[list[Scene], ModelCard]:
    """The scenes and the detector's card; logits are right to .05, deltas of what is seen at all to .01."""
    with np.load(PATH, allow_pickle=False) as stored:
        card = ModelCard.model_validate_json(str(stored["card"]))
        logits = np.moveaxis(stored["logits"], 1, 2) / np.float32(_LOGIT)
        deltas = np.zeros((*logits.shape[:2], 4), np.float32)
        deltas[logits.max(axis=2) >= _SEEN] = stored["deltas"] / np.float32(_DELTA)
        counts, boxes = stored["counts"], stored["boxes"]
    spec = card.input
    assert logits.shape[1] == len(make_anchors(detector_of(card), spec.height, spec.width))
    geometry = Geometry((1.0, 1.0), (0.0, 0.0), spec.width, spec.height)
    parts = np.split(boxes, np.cumsum(counts)[:-1])
    truths = [
        BoxLabels(
            one[:, :4].astype(np.float64), one[:, 4].astype(np.int64), np.zeros(len(one), bool), (None,) * len(one)
        )
        for one in parts
    ]
    return [Scene(HostLogits(z), d, own, geometry) for z, d, own in zip(logits, deltas, truths, strict=True)], card


def store(scenes: list[Scene], card: ModelCard) -> None:
    """Writes the file that `load` reads."""
    logits = np.stack([scene.cls_logits.rows(np.arange(len(scene.box_deltas))) for scene in scenes])
    rounded = np.clip(np.round(logits * _LOGIT), -127, 127).astype(np.int8)
    deltas = np.stack([scene.box_deltas for scene in scenes])[rounded.max(axis=2) / np.float32(_LOGIT) >= _SEEN]
    truths = [np.column_stack([scene.truth.xyxy, scene.truth.labels]) for scene in scenes]
    np.savez_compressed(
        PATH,
        # How it was trained names folders of the machine that did.
        card=np.array(card.model_copy(update={"training": {}}).model_dump_json()),
        logits=np.moveaxis(rounded, 2, 1),
        deltas=np.clip(np.round(deltas * _DELTA), -127, 127).astype(np.int8),
        counts=np.array([len(one) for one in truths]),
        boxes=np.concatenate(truths).astype(np.int16),
    )


def main(bundle: Path) -> None:
    """Composes the scenes, asks the detector, and stores what it says."""
    engine = DetectorEngine(read_bundle(bundle), "cpu", 1)
    items = merge_items(debian_items("test"))
    items = items.take(np.arange(_SKIP, len(items.images)))
    store(look_at_scenes(engine, compose_scenes(items, _COUNT, _SEED)), engine.card)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
