"""A detector that has learnt a few composed scenes by heart, trained once a session."""

from dataclasses import dataclass
from pathlib import Path

from models.bundle import Bundle, read_bundle
from scripts.items import embedded_items, merge_items
from scripts.scenes import SceneSpec, compose_scenes, write_scenes

FAST = ["--threads", "1", "--device", "cpu", "--batch-size", "8"]
SCENES = SceneSpec(side=64, fewest=1, most=3, smallest=18, largest=30)


@dataclass(frozen=True)
class ByHeart:
    """A training through `main`.

    Attributes:
        data: the COCO file of 32 scenes.
        out: where the training wrote.
        bundle: what it exported.
    """

    data: Path
    out: Path
    bundle: Bundle


def write_some(root: Path, count: int) -> Path:
    """Scenes that are training and validation alike: what can be learnt of them is by heart."""
    scenes = compose_scenes(merge_items(embedded_items("test")), count, seed=0, spec=SCENES)
    return write_scenes(root, {"train": scenes, "val": scenes})


def learn_by_heart(root: Path) -> ByHeart:
    """Scenes, and a detector that knows them."""
    from scripts import train

    data = write_some(root / "scenes", 32)
    assert train.main([str(data), "--out", str(root / "m"), *FAST, "--epochs", "25", "--no-flip"]) == 0
    return read_by_heart(root)


def read_by_heart(root: Path) -> ByHeart:
    """What `learn_by_heart` left there."""
    return ByHeart(root / "scenes" / "annotations.json", root / "m", read_bundle(root / "m" / "1"))
