"""The detectors' networks: torchvision's names, the order of the anchors, what is frozen."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.boxes import make_anchors
from models.detector_spec import AnchorLevel, DetectorSpec
from models.errors import InvalidInput
from models.nets.bodies import BODIES, freeze_stages
from models.nets.detectors import DETECTORS, build_detector, plan_of
from models.nets.norms import NORMS, FoldedNorm, FrozenBatchNorm2d, freeze_norms, group_norm
from models.nets.registry import NETS
from models.nets.retinanet import RetinaNet, by_anchor

DATA = Path(__file__).parent / "data"
PUBLISHED_PARAMETERS = 34_014_999  # torchvision's retinanet_resnet50_fpn with 91 classes


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def levels(*sizes: list[float]) -> list[AnchorLevel]:
    return [AnchorLevel(stride=8 * 2**k, sizes=own) for k, own in enumerate(sizes)]


def outputs(net: RetinaNet, height: int, width: int, count: int = 2) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits, deltas = net.eval()(torch.randn(count, 3, height, width))
    return logits, deltas


def test_names_shapes_and_order_are_those_of_torchvisions_retinanet() -> None:
    net = build_detector("resnet50", 91, plan_of("resnet50").spec(), "frozen")
    own = [f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in dict(net.state_dict()).items()]
    assert own == (DATA / "torchvision_retinanet_resnet50_fpn.txt").read_text().splitlines()
    assert sum(parameter.numel() for parameter in net.parameters()) == PUBLISHED_PARAMETERS


def test_the_default_anchors_of_resnet50_are_torchvisions() -> None:
    spec = plan_of("resnet50").spec()
    assert [level.sizes for level in spec.levels] == [
        [32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812],
    ]  # fmt: skip
    assert spec.ratios == [0.5, 1.0, 2.0]


def test_every_classifier_has_a_detector() -> None:
    assert list(DETECTORS) == list(BODIES) == list(NETS)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 131)])
def test_one_row_per_anchor(name: str, height: int, width: int) -> None:
    spec = plan_of(name).spec()
    logits, deltas = outputs(build_detector(name, 3, spec), height, width)
    count = len(make_anchors(spec, height, width))
    assert logits.shape == (2, count, 3) and deltas.shape == (2, count, 4)
    assert bool(torch.isfinite(logits).all() and torch.isfinite(deltas).all())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_levels_are_a_parameter(count: int) -> None:
    spec = DetectorSpec(levels=levels(*[[16.0 * 2**k] for k in range(count)]), ratios=[1.0])
    net = build_detector("resnet18", 2, spec)
    assert outputs(net, 64, 64)[0].shape[1] == sum((-(-64 // 2 ** (3 + k))) ** 2 for k in range(count))
    assert hasattr(net.body, "layer4") == (count >= 3)


def test_rows_follow_cells_then_ratios_then_sizes() -> None:
    anchors, values, height, width = 3, 2, 4, 5
    maps = torch.arange(anchors * values * height * width).reshape(1, anchors * values, height, width)
    rows = by_anchor(maps, values)
    for row, column, anchor in [(0, 0, 0), (2, 3, 1), (3, 4, 2)]:
        place = (row * width + column) * anchors + anchor
        assert rows[0, place].tolist() == [int(maps[0, anchor * values + v, row, column]) for v in range(values)]


def test_an_anchor_sees_the_picture_at_its_place() -> None:
    spec = plan_of("small").spec()
    net = build_detector("small", 1, spec).eval()
    image = torch.randn(1, 3, 128, 128)
    image.requires_grad_(True)
    place = next(k for k, box in enumerate(make_anchors(spec, 128, 128)) if tuple(box) == (54, 86, 74, 106))
    logits, _ = net(image)
    torch.autograd.backward(logits[0, place, 0])
    assert image.grad is not None
    weight = image.grad[0].square().sum(0)
    grid = torch.arange(128.0)
    centre = float((weight.sum(0) * grid).sum() / weight.sum()), float((weight.sum(1) * grid).sum() / weight.sum())
    assert centre == pytest.approx((64.0, 96.0), abs=8.0)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_class_starts_at_one_in_a_hundred(name: str) -> None:
    net = build_detector(name, 4, plan_of(name).spec())
    logits, _ = outputs(net, 64, 64)
    assert float(logits.mean()) == pytest.approx(-math.log(99.0), abs=0.3)


@pytest.mark.parametrize("name", ["small", "resnet18", "mobilenet_v2"])
def test_gradients_reach_every_parameter(name: str) -> None:
    net = build_detector(name, 2, plan_of(name).spec()).train()
    logits, deltas = net(torch.randn(2, 3, 64, 64))
    torch.autograd.backward(logits.square().mean() + (deltas - 1).square().mean())
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0.0, label


@pytest.mark.parametrize("name", ["small", "mobilenet_v2"])
def test_an_image_is_seen_alike_whatever_its_batch(name: str) -> None:
    net = build_detector(name, 3, plan_of(name).spec()).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = net(images)[0], torch.cat([net(images[k : k + 1])[0] for k in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_frozen_norms_compute_what_the_batch_norms_did_and_never_change() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.BatchNorm2d(8)))
    for _ in range(3):
        net(torch.randn(4, 3, 9, 9) * 3 + 1)
    images = torch.randn(2, 3, 9, 9)
    want = net.eval()(images)
    freeze_norms(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert torch.allclose(net.train()(images), want, atol=1e-5)
    assert all("1." not in name for name, _ in net.named_parameters())
    assert set(FrozenBatchNorm2d(8).state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("name", BODIES)
def test_a_frozen_body_is_all_folded_and_learns_as_if_it_were_not(name: str) -> None:
    batch, plain = BODIES[name](3), BODIES[name](3)
    for module in batch.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    names = [key for key in batch.state_dict() if not key.endswith("num_batches_tracked")]
    plain.load_state_dict(batch.state_dict())
    freeze_norms(batch)
    assert list(batch.state_dict()) == names
    kinds = [type(module) for module in batch.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert kinds and set(kinds) == {FoldedNorm}
    # In float64: at the kinks of ReLU rounding decides whether a gradient passes.
    batch, plain, images = batch.double(), plain.double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for folded, wanted in zip(batch.train()(images), plain.eval()(images), strict=True):
        assert torch.allclose(folded, wanted, atol=1e-9 * float(wanted.detach().abs().max()))
        torch.autograd.backward([folded.sum(), wanted.sum()], retain_graph=True)
    learnt = dict(plain.named_parameters())
    for label, parameter in batch.named_parameters():
        given, wanted = parameter.grad, learnt[label].grad
        assert given is not None and wanted is not None
        assert torch.allclose(given, wanted, atol=1e-9 * float(wanted.abs().max())), label


def test_group_norm_needs_whole_groups() -> None:
    assert set(NORMS) == {"batch", "frozen", "group"}
    assert isinstance(group_norm(64), nn.GroupNorm)
    with pytest.raises(InvalidInput, match="multiple of 8 channels, not 20"):
        group_norm(20)


@pytest.mark.parametrize("name", BODIES)
def test_the_stages_are_the_whole_body_and_freeze_from_the_input_on(name: str) -> None:
    body = BODIES[name](2)
    inside = [p for stage in body.stages() for module in stage for p in module.parameters()]
    assert {id(p) for p in inside} == {id(p) for p in body.parameters()}
    freeze_stages(body, 1)
    assert not next(body.parameters()).requires_grad
    assert any(p.requires_grad for p in body.parameters())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DetectorSpec(levels=levels([16.0], [32.0, 40.0]), ratios=[1.0]), r"same number of anchor sizes, not \[1, 2\]"),
        (DetectorSpec(levels=[AnchorLevel(stride=4, sizes=[8.0])], ratios=[1.0]), r"without a gap, not \[4\]"),
    ],
)
def test_levels_that_do_not_fit_are_refused(spec: DetectorSpec, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build_detector("small", 2, spec)


def test_wrong_names_are_refused() -> None:
    spec = plan_of("small").spec()
    with pytest.raises(InvalidInput, match="unknown network 'vgg'; known: small, resnet18"):
        build_detector("vgg", 2, spec)
    with pytest.raises(InvalidInput, match="at least 1 class"):
        build_detector("small", 0, spec)
    with pytest.raises(InvalidInput, match="unknown norm 'layer'"):
        build_detector("small", 2, spec, "layer")
