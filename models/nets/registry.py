"""The networks by name, and what training needs to know about their last layer."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from models.errors import InvalidInput
from models.nets.mobilenet import mobilenet_v2
from models.nets.resnet import resnet18, resnet34, resnet50
from models.nets.small import SmallNet

NETS: dict[str, Callable[[int], nn.Module]] = {
    "small": SmallNet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
}
PRIOR_FLOOR = 1e-4


def build_net(name: str, outputs: int) -> nn.Module:
    """A freshly initialised network: images (N, 3, H, W) float32, normalised, to logits (N, outputs).

    Raises:
        InvalidInput: no network of that name, or fewer than one output.
    """
    if name not in NETS:
        raise InvalidInput(f"unknown network {name!r}; known: {', '.join(NETS)}")
    if outputs < 1:
        raise InvalidInput(f"a network needs at least 1 output, not {outputs}")
    return NETS[name](outputs)


def head(net: nn.Module) -> nn.Linear:
    """The last linear layer in the order of definition: the one that makes the logits."""
    return _named_head(net)[1]


def head_names(net: nn.Module) -> tuple[str, str]:
    """The names of the last layer's weight (outputs, features) and bias (outputs,) in the state dict."""
    name = _named_head(net)[0]
    return f"{name}.weight", f"{name}.bias"


def set_prior_bias(net: nn.Module, prior: Sequence[float]) -> None:
    """Start every sigmoid output at its class prior: the last layer's bias becomes -log((1 - pi) / pi).

    For sigmoid outputs only. Rare classes then begin with a loss of the right size instead of one that drowns the
    rest (Lin et al. 2017, section 3.3). No other parameter is touched. A prior nearer than 1e-4 to 0 or 1 counts as
    1e-4 or 1 - 1e-4, so that no bias exceeds 9.21 and a class of few samples can still be learnt.

    Args:
        net: a network from `build_net`.
        prior: (outputs,) share of positives of each class, each strictly between 0 and 1.

    Raises:
        InvalidInput: the length is not the number of outputs, or a prior is not strictly between 0 and 1.
    """
    layer = head(net)
    if len(prior) != layer.out_features:
        raise InvalidInput(f"{len(prior)} priors for a network of {layer.out_features} outputs")
    for index, share in enumerate(prior):
        if not 0.0 < share < 1.0:
            raise InvalidInput(f"prior {index} is {share}; it must be strictly between 0 and 1")
    clipped = [min(max(float(share), PRIOR_FLOOR), 1.0 - PRIOR_FLOOR) for share in prior]
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-math.log((1.0 - share) / share) for share in clipped]))


def _named_head(net: nn.Module) -> tuple[str, nn.Linear]:
    linear = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InvalidInput(f"{type(net).__name__} has no linear layer to be its head")
    return linear[-1]
