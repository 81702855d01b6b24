import base64
import copy
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.bundle import METADATA_KEY, read_bundle, write_bundle
from models.card import ClassFacts, ImageInput, ModelCard
from models.errors import BundleError
from models.nets import export, graphs
from models.nets.export import ServedNet, export_net
from models.nets.graphs import Export

LABELS = ["a", "b", "c"]
SPEC = ImageInput(height=12, width=20, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 12, 20, 3), dtype=np.uint8)
FACTS: dict[str, Any] = {
    "name": "tiny",
    "version": "3",
    "created": "2026-11-22T00:00:00+00:00",
    "task": "multiclass",
    "labels": LABELS,
    "input": SPEC,
    "classes": [ClassFacts(label=label, train_count=1, prior=0.3) for label in LABELS],
}


def tiny_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    for _ in range(3):
        net(torch.randn(4, 3, 12, 20) * 2 + 1)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.set_num_threads(1)
    return tiny_net()


@pytest.fixture(scope="module")
def before(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def exported(net: nn.Module, before: dict[str, Tensor]) -> Export:
    assert net.training
    return export_net(net, FACTS, IMAGES)


def run(graph: bytes, images: Any) -> Any:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def test_export_leaves_the_net_as_it_is(net: nn.Module, before: dict[str, Tensor], exported: Export) -> None:
    assert exported.card.name == "tiny"
    assert net.training and all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_graph_takes_decoded_images_and_gives_logits(exported: Export) -> None:
    session = onnxruntime.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["N", 12, 20, 3])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["N", 3])
    graph = onnx.load_from_string(exported.graph)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 20)]
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_any_number_of_images_gives_what_torch_gives(net: nn.Module, exported: Export, count: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 12, 20, 3), dtype=np.uint8)
    served = ServedNet(copy.deepcopy(net), SPEC).eval()
    with torch.inference_mode():
        want = served(torch.from_numpy(images)).numpy()
    assert run(exported.graph, images) == pytest.approx(want, abs=1e-5)


def test_normalisation_is_that_of_the_card() -> None:
    image = torch.from_numpy(IMAGES)
    got = ServedNet(nn.Identity(), SPEC)(image)
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    want = (image.permute(0, 3, 1, 2) / 255.0 - mean) / std
    assert got.shape == (5, 3, 12, 20) and got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_card_travels_inside_the_graph(exported: Export) -> None:
    graph = onnx.load_from_string(exported.graph)
    stored = {each.key: each.value for each in graph.metadata_props}
    assert ModelCard.parse(stored[METADATA_KEY], "graph") == exported.card
    assert exported.card.sha256 is None


def test_the_golden_pair_is_the_first_image_and_what_the_runtime_answers(exported: Export) -> None:
    golden = exported.card.golden
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(golden.image_png))))
    assert np.array_equal(pixels, IMAGES[0])
    assert golden.logits == pytest.approx(run(exported.graph, IMAGES[:1])[0].tolist(), abs=0)


def test_a_bundle_written_is_read_back_and_runs(exported: Export, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny", exported.card, exported.graph)
    bundle = read_bundle(folder)
    assert folder.name == "3" and bundle.graph == exported.graph
    assert bundle.card.model_copy(update={"sha256": None}) == exported.card
    assert run(bundle.graph, IMAGES[:1])[0].tolist() == pytest.approx(bundle.card.golden.logits, abs=0)


def test_parity_is_measured_and_kept_in_the_card(exported: Export) -> None:
    assert 0.0 < exported.card.parity_max_difference < 1e-5


class Shifted(nn.Module):
    def __init__(self, net: nn.Module, by: float) -> None:
        super().__init__()
        self.net = net
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) + self.by
        return out


@pytest.mark.parametrize(("by", "said"), [(1e-3, r"0\.00\d+"), (float("inf"), "inf"), (float("nan"), "inf")])
def test_a_graph_that_differs_from_the_net_is_refused(
    net: nn.Module, exported: Export, monkeypatch: pytest.MonkeyPatch, by: float, said: str
) -> None:
    monkeypatch.setattr(export, "_build_graph", lambda served, images: onnx.load_from_string(exported.graph))
    with pytest.raises(BundleError, match=rf"differ from torch's by {said}; 0\.0001 is allowed"):
        export_net(Shifted(net, by), FACTS, IMAGES)
    assert export_net(Shifted(net, 0.0), FACTS, IMAGES).card == exported.card


def test_warnings_that_export_silences_are_heard_again_after_it(exported: Export) -> None:
    with graphs._quiet():
        warnings.warn("silenced", UserWarning, stacklevel=1)
        assert not logging.getLogger("torch.onnx").isEnabledFor(logging.WARNING)
    assert logging.getLogger("torch.onnx").isEnabledFor(logging.WARNING)
    with pytest.raises(UserWarning, match="still heard"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("still heard", UserWarning, stacklevel=1)
