"""Real bundles, exported once a session, and encoded pictures. Torch is imported by the fixtures alone."""

import fcntl
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from models.bundle import write_bundle
from models.card import Calibration, ClassFacts, ImageInput, LossSpec, ModelCard
from models.fit import Pixels
from tests.by_heart import ByHeart, learn_by_heart, read_by_heart

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

GARMENTS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
TAGS = ["striped", "long", "dark", "new"]
SIDE = 28
LONGEST_FIRST = (
    "test_readme.py",
    "test_cli.py",
    "test_demo_detect.py",
    "test_box_audit_bench.py",
    "test_audit_restart.py",
    "test_soak.py",
    "test_server.py",
    "test_detector.py",
    "test_train.py",
    "test_resume.py",
    "test_export_detector.py",
    "test_page.py",
    "test_bench.py",
    "test_retinanet.py",
    "test_loss_graph.py",
    "test_imagenet_weights.py",
    "test_noise.py",
    "test_nets.py",
)
"""Files of more than ten seconds: last, one of them would keep a worker busy while the others have nothing to do."""

_LEVELS = len(ModelCard.model_fields["quantile_levels"].default)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files, not what is in them, for the workers of `make test`."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def jpeg(pixels: Pixels, quality: int = 95, **options: Any) -> bytes:
    """Pixels (H, W, 3), or (H, W) grey, as a JPEG file; more options as Pillow's."""
    return _encode(pixels, "JPEG", quality=quality, **options)


def png(pixels: Pixels, **options: Any) -> bytes:
    """Pixels (H, W, 3), or (H, W) grey, as a PNG file; options as Pillow's."""
    return _encode(pixels, "PNG", **options)


def noise(height: int = SIDE, width: int = SIDE, seed: int = 0) -> Pixels:
    """A picture of noise, (height, width, 3) uint8, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, once a session: by whichever worker needs it first, while the others wait."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, made = shared / name, shared / f"{name}.made"
    with open(shared / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a worker left that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that holds the multiclass model `tiny`, version 1: 10 garments, gamma 2."""
    return made_once(tmp_path_factory, "artifacts", lambda root: export_tiny(root, "multiclass", GARMENTS))


@pytest.fixture(scope="session")
def multilabel_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `artifacts`, but `tiny` is a multi-label model of 4 tags."""
    return made_once(tmp_path_factory, "multilabel", lambda root: export_tiny(root, "multilabel", TAGS))


@pytest.fixture(scope="session")
def binary_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `artifacts`, but `tiny` says yes or no: one logit."""
    return made_once(tmp_path_factory, "binary", lambda root: export_tiny(root, "binary", ["plain", "striped"]))


@pytest.fixture(scope="session")
def bundle_folder(artifacts: Path) -> Path:
    """The multiclass bundle itself."""
    return artifacts / "tiny" / "1"


@pytest.fixture(scope="session")
def multilabel_bundle(multilabel_artifacts: Path) -> Path:
    """The multi-label bundle itself."""
    return multilabel_artifacts / "tiny" / "1"


@pytest.fixture(scope="session")
def binary_bundle(binary_artifacts: Path) -> Path:
    """The binary bundle itself."""
    return binary_artifacts / "tiny" / "1"


@pytest.fixture(scope="session")
def by_heart(tmp_path_factory: pytest.TempPathFactory) -> ByHeart:
    """A detector that has learnt 32 scenes by heart."""
    return read_by_heart(made_once(tmp_path_factory, "by-heart", learn_by_heart))


@pytest.fixture(scope="session")
def detector_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artifacts that holds the detector `scenes`, version 1: 3 classes, fresh but lively weights."""
    return made_once(tmp_path_factory, "detector", export_scenes)


def export_scenes(root: Path) -> None:
    """Exports the detector `scenes`, version 1, below a folder."""
    import torch

    from models.nets.detectors import build_detector, plan_of
    from models.nets.export_detector import export_detector

    torch.set_num_threads(1)
    spec, labels = plan_of("small").spec(), ["tops", "trouser", "dress"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = build_detector("small", len(labels), spec)
        with torch.no_grad():
            for name, parameter in net.head.named_parameters():
                if name.endswith(("cls_logits.weight", "bbox_reg.weight")):
                    parameter.mul_(8.0)
    facts = {
        "name": "scenes",
        "version": "1",
        "created": "2025-01-01T00:00:00+00:00",
        "task": "detection",
        "labels": labels,
        "input": ImageInput(height=128, width=128, resize="letterbox"),
        "detector": spec,
        "classes": [ClassFacts(label=label, train_count=1, prior=0.3) for label in labels],
    }
    exported = export_detector(net, facts, np.stack([noise(128, 128, seed) for seed in range(4)]))
    write_bundle(root / "scenes", exported.card, exported.graph, exported.loss_graph)


def export_tiny(root: Path, task: str, labels: list[str]) -> Path:
    """Exports the model `tiny`, version 1, below a folder."""
    import torch

    from models.nets.export import export_net
    from models.nets.registry import build_net, head

    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net("small", 1 if task == "binary" else len(labels))
    with torch.no_grad():
        head(net).weight.mul_(60.0)  # a fresh net says nearly the same of every picture
    export = export_net(net, _facts(task, labels), np.stack([noise(seed=seed) for seed in range(4)]))
    write_bundle(root / "tiny", export.card, export.graph)
    return root


def _facts(task: str, labels: list[str]) -> dict[str, Any]:
    share = 1.0 / len(labels)
    return {
        "name": "tiny",
        "version": "1",
        "created": "2025-01-01T00:00:00+00:00",
        "task": task,
        "labels": labels,
        "input": ImageInput(height=SIDE, width=SIDE),
        "loss": LossSpec(gamma=2.0),
        "calibration": Calibration(gamma=2.0, temperature=1.25),
        "classes": [
            ClassFacts(
                label=label,
                train_count=100 + k,
                prior=share,
                confidence_threshold=share if task == "multiclass" else 0.6,
                validation_count=20,
                loss_quantiles=np.linspace(0.0, 3.0, _LEVELS).tolist(),
            )
            for k, label in enumerate(labels)
        ],
        "training": {"net": "small", "epochs": 0},
    }


def _encode(pixels: Pixels, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()
