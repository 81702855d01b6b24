"""Published or saved weights into a detector: a detector's own file, or that of the classifier its backbone is from."""

import os
import re
from pathlib import Path

from torch import Tensor

from models.nets.retinanet import RetinaNet
from models.nets.weights import SkippedTensor, WeightsReport, check_names, check_tensor, read_tensors

_COUNTER = ".num_batches_tracked"
_BODY = "backbone.body."
_LAST = re.compile(r"head\.(classification_head\.cls_logits|regression_head\.bbox_reg)\.(weight|bias)")
# torchvision's files of 2020 have `inner_blocks.0.weight`, and the towers' activations in between: conv.0, conv.2, ...
_OLD_PYRAMID = re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)")
_OLD_TOWER = re.compile(r"(head\.\w+\.conv)\.(\d+)\.(weight|bias)")


def load_detector_weights(net: RetinaNet, path: str | os.PathLike[str]) -> WeightsReport:
    """Copies the tensors of a .pth or .pt file into a detector, all or none.

    A detector's file fills all of it; the last convolutions of the heads keep their own values where the number of
    classes or anchors differs, and the report says so. A classifier's file fills the body alone; what the body has no
    place for (the classifier's head, stages that this detector cuts off) is left. Counters of batch norm are not
    needed. torchvision's old names are understood.

    Args:
        net: from `build_detector`; changed in place.
        path: the file; only tensors are read from it, other Python objects are refused and never run.

    Raises:
        InvalidInput: the file cannot be read, or does not fit the network.
    """
    path = Path(path)
    tensors = {_new_name(name): tensor for name, tensor in read_tensors(path).items()}
    own: dict[str, Tensor] = net.state_dict()
    whole = any(name.startswith("backbone.") for name in tensors)
    if not whole:
        own = {name.removeprefix(_BODY): tensor for name, tensor in own.items() if name.startswith(_BODY)}
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or not name.endswith(_COUNTER)}
    total = len(tensors)
    if not whole:
        tensors = {name: tensor for name, tensor in tensors.items() if name in own}
    check_names(path.name, tensors, own)
    skipped = [
        SkippedTensor(name, tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in tensors.items()
        if _LAST.fullmatch(name) and tensor.shape[1:] == own[name].shape[1:] and tensor.shape != own[name].shape
    ]
    for name in {each.name for each in skipped}:
        del tensors[name]
    for name, tensor in tensors.items():
        check_tensor(path.name, name, tensor, own[name])
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    return WeightsReport(path.name, len(tensors), total, tuple(skipped))


def _new_name(name: str) -> str:
    name = _OLD_PYRAMID.sub(r"\1.0.\2", name) if _OLD_PYRAMID.fullmatch(name) else name
    old = _OLD_TOWER.fullmatch(name)
    return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else name
