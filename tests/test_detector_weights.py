"""Files of weights into detectors: their own, torchvision's old names, and those of the backbone's classifier."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import InvalidInput
from models.nets.detector_weights import load_detector_weights
from models.nets.detectors import build_detector, plan_of
from models.nets.registry import build_net
from models.nets.retinanet import RetinaNet


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def detector(name: str, classes: int = 2, norm: str = "batch") -> RetinaNet:
    return build_detector(name, classes, plan_of(name).spec(), norm)


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state, "epoch": 1}, path)
    return path


def test_a_saved_detector_comes_back_whole(tmp_path: Path) -> None:
    source, target = detector("small"), detector("small")
    state = dict(source.state_dict())
    report = load_detector_weights(target, saved(tmp_path / "best.pt", state))
    assert report.describe() == f"loaded {len(state)} of {len(state)} tensors from best.pt"
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in state.items())


def test_torchvisions_names_of_2020_are_understood(tmp_path: Path) -> None:
    source, target = detector("resnet18", norm="frozen"), detector("resnet18", norm="frozen")
    old = {}
    for name, tensor in dict(source.state_dict()).items():
        parts = name.split(".")
        if parts[:2] == ["backbone", "fpn"] and parts[2] != "extra_blocks":
            name = ".".join([*parts[:4], parts[5]])  # inner_blocks.0.0.weight was inner_blocks.0.weight
        elif parts[0] == "head" and parts[2] == "conv":
            name = ".".join([*parts[:3], str(2 * int(parts[3])), parts[5]])  # conv.1.0.weight was conv.2.weight
        old[name] = tensor
    assert "head.classification_head.conv.6.bias" in old and "backbone.fpn.inner_blocks.2.weight" in old
    report = load_detector_weights(target, saved(tmp_path / "old.pth", old))
    assert report.loaded == report.total == len(target.state_dict())
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in dict(source.state_dict()).items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_classifiers_file_fills_the_body_alone(tmp_path: Path, name: str, norm: str) -> None:
    classifier, target = build_net(name, 1000), detector(name, norm=norm)
    before = {key: tensor.clone() for key, tensor in dict(target.state_dict()).items()}
    state = dict(classifier.state_dict())
    report = load_detector_weights(target, saved(tmp_path / "imagenet.pth", state))
    after = dict(target.state_dict())
    body = [key for key in after if key.startswith("backbone.body.")]
    counters = 0 if norm == "batch" else sum(key.endswith("num_batches_tracked") for key in state)
    assert report.loaded == len(body) and report.total == len(state) - counters and not report.skipped
    assert all(torch.equal(after[key], state[key.removeprefix("backbone.body.")]) for key in body)
    assert all(torch.equal(after[key], before[key]) for key in after if key not in body)


def test_another_number_of_classes_keeps_its_own_last_convolution(tmp_path: Path) -> None:
    source, target = detector("small", 5), detector("small", 2)
    own = target.get_parameter("head.classification_head.cls_logits.bias").clone()
    report = load_detector_weights(target, saved(tmp_path / "five.pt", dict(source.state_dict())))
    said = "cls_logits.weight [30, 64, 3, 3] was not loaded: this model has [12, 64, 3, 3]"
    assert said in report.describe()
    assert torch.equal(target.get_parameter("head.classification_head.cls_logits.bias"), own)
    place = "head.regression_head.bbox_reg.weight"
    assert torch.equal(target.get_parameter(place), source.get_parameter(place))


def test_a_file_of_another_net_changes_nothing(tmp_path: Path) -> None:
    target = detector("small")
    before = {key: tensor.clone() for key, tensor in dict(target.state_dict()).items()}
    other = saved(tmp_path / "other.pt", dict(detector("resnet18").state_dict()))
    with pytest.raises(InvalidInput, match=r"other\.pt does not fit this model: it lacks"):
        load_detector_weights(target, other)
    damaged = dict(detector("small").state_dict())
    damaged["head.regression_head.bbox_reg.bias"] = torch.full((24,), float("nan"))
    with pytest.raises(InvalidInput, match="values that are not finite"):
        load_detector_weights(target, saved(tmp_path / "nan.pt", damaged))
    assert all(torch.equal(before[key], tensor) for key, tensor in dict(target.state_dict()).items())
