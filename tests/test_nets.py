from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import InvalidInput
from models.nets.registry import NETS, build_net, head, set_prior_bias

DATA = Path(__file__).parent / "data"
PUBLISHED = {  # entries of the state dict, and parameters, of torchvision's nets with 1000 classes
    "resnet18": (122, 11_689_512),
    "resnet34": (218, 21_797_672),
    "resnet50": (320, 25_557_032),
    "mobilenet_v2": (314, 3_504_872),
}
LISTED = ("resnet18", "resnet50", "mobilenet_v2")


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def shapes(net: nn.Module) -> list[str]:
    """Each entry of the state dict as "name 64x3x7x7", in order."""
    return [f"{name} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for name, tensor in dict(net.state_dict()).items()]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def logits(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = net(images)
    return out


@pytest.mark.parametrize("name", LISTED)
def test_names_shapes_and_order_are_torchvisions(name: str) -> None:
    assert shapes(build_net(name, 1000)) == (DATA / f"torchvision_{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_torchvision_publishes(name: str) -> None:
    net = build_net(name, 1000)
    assert (len(net.state_dict()), parameters(net)) == PUBLISHED[name]


def test_resnet34_is_made_of_the_blocks_of_resnet18_only_more_of_them() -> None:
    names = dict(build_net("resnet34", 1000).state_dict())
    assert "layer3.5.bn2.running_var" in names
    assert "layer3.6.conv1.weight" not in names
    assert "layer1.0.downsample.0.weight" not in names
    assert tuple(names["layer4.0.downsample.0.weight"].shape) == (512, 256, 1, 1)


def test_the_small_net_is_small() -> None:
    assert 100_000 <= parameters(build_net("small", 10)) <= 350_000


@pytest.mark.parametrize("name", NETS)
def test_logits_have_one_row_per_image_and_one_column_per_output(name: str) -> None:
    net = build_net(name, 7).eval()
    for height, width in [(28, 28), (33, 47), (64, 40)]:
        out = logits(net, torch.randn(2, 3, height, width))
        assert out.shape == (2, 7)
        assert out.dtype == torch.float32
        assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("name", NETS)
def test_in_evaluation_an_image_gets_the_same_logits_whatever_its_batch(name: str) -> None:
    net = build_net(name, 5)
    images = torch.randn(4, 3, 32, 32)
    net.train()
    logits(net, images)
    net.eval()
    together = logits(net, images)
    alone = torch.cat([logits(net, images[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4)
    assert torch.equal(together, logits(net, images))


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_parameter(name: str) -> None:
    net = build_net(name, 5)
    net.train()
    torch.autograd.backward(nn.functional.cross_entropy(net(torch.randn(4, 3, 48, 48)), torch.arange(4)))
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None, label
        assert bool(torch.isfinite(parameter.grad).all()), label
        assert float(parameter.grad.abs().max()) > 0.0, label


@pytest.mark.parametrize(
    ("name", "taps", "channels"),
    [
        ("resnet18", ("layer2", "layer3", "layer4"), (128, 256, 512)),
        ("resnet50", ("layer2", "layer3", "layer4"), (512, 1024, 2048)),
        ("mobilenet_v2", ("features.6", "features.13", "features.18"), (32, 96, 1280)),
    ],
)
def test_the_documented_places_give_strides_8_16_and_32(
    name: str, taps: Sequence[str], channels: Sequence[int]
) -> None:
    net = build_net(name, 2).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for tap in taps:
        net.get_submodule(tap).register_forward_hook(
            lambda _module, _inputs, out, tap=tap: seen.__setitem__(tap, tuple(out.shape))
        )
    logits(net, torch.randn(1, 3, 72, 100))
    sides = [(9, 13), (5, 7), (3, 4)]
    assert [seen[tap] for tap in taps] == [(1, c, h, w) for c, (h, w) in zip(channels, sides, strict=True)]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"unknown network 'vgg'; known: small, resnet18, .*, mobilenet_v2"):
        build_net("vgg", 10)


@pytest.mark.parametrize("outputs", [0, -3])
def test_a_network_without_outputs_is_refused(outputs: int) -> None:
    with pytest.raises(InvalidInput, match="at least 1 output"):
        build_net("small", outputs)


@pytest.mark.parametrize("name", NETS)
def test_the_head_is_the_last_layer(name: str) -> None:
    assert head(build_net(name, 6)).out_features == 6


def test_a_net_without_a_linear_layer_has_no_head() -> None:
    with pytest.raises(InvalidInput, match="no linear layer"):
        head(nn.Sequential(nn.ReLU()))


PRIOR = [0.9, 0.5, 0.1, 0.01, 0.002]


@pytest.mark.parametrize("name", NETS)
def test_the_prior_goes_into_the_last_bias_and_nowhere_else(name: str) -> None:
    net = build_net(name, 5)
    before = {key: tensor.clone() for key, tensor in dict(net.state_dict()).items()}
    set_prior_bias(net, PRIOR)
    changed = [key for key, tensor in dict(net.state_dict()).items() if not torch.equal(tensor, before[key])]
    assert changed in (["fc.bias"], ["classifier.1.bias"])
    assert torch.allclose(torch.sigmoid(head(net).bias), torch.tensor(PRIOR), rtol=1e-5)


def test_the_bias_at_one_in_a_hundred_is_the_papers_value() -> None:
    net = build_net("small", 1)
    set_prior_bias(net, [0.01])
    assert float(head(net).bias.detach()) == pytest.approx(-4.59511985013459, abs=1e-6)


@pytest.mark.parametrize("name", ["small", "resnet18", "mobilenet_v2"])
def test_a_fresh_net_predicts_about_the_prior(name: str) -> None:
    net = build_net(name, 5)
    set_prior_bias(net, PRIOR)
    net.train()
    mean = torch.sigmoid(logits(net, torch.randn(32, 3, 64, 64))).mean(0)
    odds = torch.logit(mean) - torch.logit(torch.tensor(PRIOR))
    assert float(odds.abs().max()) < 1.0


def test_extreme_priors_count_as_one_in_ten_thousand() -> None:
    net = build_net("small", 2)
    set_prior_bias(net, [1e-12, 1.0 - 1e-12])
    assert torch.allclose(torch.sigmoid(head(net).bias), torch.tensor([1e-4, 1.0 - 1e-4]), atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_prior_outside_the_open_interval_is_refused_by_its_index(share: float) -> None:
    net = build_net("small", 2)
    with pytest.raises(InvalidInput, match=r"prior 1 is .* strictly between 0 and 1"):
        set_prior_bias(net, [0.5, share])


def test_a_prior_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match="3 priors for a network of 2 outputs"):
        set_prior_bias(build_net("small", 2), [0.1, 0.2, 0.3])
