"""Published or saved weights into a network, without running anything that the file holds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import InvalidInput
from models.nets.registry import head_names

_SHOWN = 3
_WRAPPERS = ("state_dict", "model")


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor of the file that was not loaded, and the shape that this network has instead."""

    name: str
    in_file: tuple[int, ...]
    in_net: tuple[int, ...]


@dataclass(frozen=True)
class WeightsReport:
    """What of a file went into the network.

    Attributes:
        file: base name of the file.
        loaded: tensors copied into the network.
        total: tensors in the file, but for counters of batch norm that the network does not have.
        skipped: the head's tensors, where file and network differ in the number of classes.
    """

    file: str
    loaded: int
    total: int
    skipped: tuple[SkippedTensor, ...]

    def describe(self) -> str:
        """One line for a person, naming every tensor that was not loaded."""
        parts = [f"loaded {self.loaded} of {self.total} tensors from {self.file}"]
        for each in self.skipped:
            parts.append(f"{each.name} {list(each.in_file)} was not loaded: this model has {list(each.in_net)}")
        return "; ".join(parts)


def load_weights(net: nn.Module, path: str | os.PathLike[str]) -> WeightsReport:
    """Copy the tensors of a .pth or .pt file into the network, all or none.

    The file is a state dict, bare or under the key "state_dict" or "model"; the prefix "module." of data-parallel
    training is removed. Where the number of classes differs, the head keeps its own values and the report says so.
    Counters named num_batches_tracked may be absent, as in torchvision's oldest files.

    Args:
        net: a network from `build_net`; changed in place.
        path: the file; only tensors are read from it, other Python objects are refused and never run.

    Raises:
        InvalidInput: the file cannot be read, or does not fit the network.
    """
    path = Path(path)
    tensors = read_tensors(path)
    own: dict[str, Tensor] = net.state_dict()
    check_names(path.name, tensors, own)
    skipped = _other_classes(net, tensors, own)
    kept = {name: tensor for name, tensor in tensors.items() if name not in {each.name for each in skipped}}
    for name, tensor in kept.items():
        check_tensor(path.name, name, tensor, own[name])
    net.load_state_dict(kept, strict=False)
    return WeightsReport(path.name, len(kept), len(tensors), tuple(skipped))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix of data-parallel training.

    Raises:
        InvalidInput: it cannot be read, or holds anything but named tensors.
    """
    return _plain_tensors(path.name, _read(path))


def _read(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidInput(f"{path.name} cannot be opened: {error.strerror or error}") from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise InvalidInput(
            f"{path.name} cannot be read as plain tensors ({type(error).__name__}): "
            "it is damaged, cut short or no weights file, or it holds Python objects, which are never run"
        ) from error


def _plain_tensors(file: str, content: object) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{file} holds no state dict, but an object of type {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InvalidInput(f"{file} holds more than named tensors: {name!r} is of type {type(value).__name__}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


def check_names(file: str, tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuses a file that lacks a tensor of the network's own, or has one that the network does not know.

    Raises:
        InvalidInput: the message names the first of them.
    """
    missing = [name for name in own if name not in tensors and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    faults = []
    if missing:
        faults.append(f"it lacks {len(missing)} tensors ({_first(missing)})")
    if unexpected:
        faults.append(f"it has {len(unexpected)} that this model does not know ({_first(unexpected)})")
    if faults:
        raise InvalidInput(f"{file} does not fit this model: {' and '.join(faults)}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _other_classes(net: nn.Module, tensors: dict[str, Tensor], own: dict[str, Tensor]) -> list[SkippedTensor]:
    """The head's weight and bias, if they differ in the number of classes and in nothing else."""
    names = head_names(net)
    rows = {tensors[name].shape[:1] for name in names}
    same_otherwise = all(tensors[name].shape[1:] == own[name].shape[1:] for name in names)
    if len(rows) != 1 or not same_otherwise or rows == {own[names[0]].shape[:1]}:
        return []
    return [SkippedTensor(name, tuple(tensors[name].shape), tuple(own[name].shape)) for name in names]


def check_tensor(file: str, name: str, tensor: Tensor, own: Tensor) -> None:
    """Refuses a tensor that is not of the network's shape and type, or holds what is no number.

    Raises:
        InvalidInput: the message names it.
    """
    if tensor.shape != own.shape:
        raise InvalidInput(
            f"{file} does not fit this model: {name} is {list(tensor.shape)} there and {list(own.shape)} here"
        )
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise InvalidInput(f"{file}: {name} is not stored as a plain dense tensor")
    if tensor.is_floating_point() != own.is_floating_point() or tensor.is_complex():
        raise InvalidInput(f"{file}: {name} is of type {tensor.dtype} there and {own.dtype} here")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise InvalidInput(f"{file}: {name} holds values that are not finite numbers")
