import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import InvalidInput
from models.nets.registry import build_net, head, set_prior_bias
from models.nets.weights import load_weights


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("small", ""), ("small", "state_dict"), ("small", "model"), ("resnet18", ""), ("mobilenet_v2", "")],
)
def test_saved_weights_come_back_whole(tmp_path: Path, name: str, wrapper: str) -> None:
    source, target = build_net(name, 4), build_net(name, 4)
    state = source.state_dict()
    path = saved(tmp_path / "weights.pth", {wrapper: state, "epoch": 3} if wrapper else state)
    report = load_weights(target, path)
    assert report.describe() == f"loaded {len(state)} of {len(state)} tensors from weights.pth"
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in dict(state).items())


def test_the_prefix_of_data_parallel_training_is_removed(tmp_path: Path) -> None:
    source, target = build_net("small", 4), build_net("small", 4)
    state = {f"module.{name}": tensor for name, tensor in dict(source.state_dict()).items()}
    load_weights(target, saved(tmp_path / "weights.pt", state))
    assert torch.equal(head(source).weight, head(target).weight)


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    state = dict(build_net("resnet18", 4).state_dict())
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    report = load_weights(build_net("resnet18", 4), saved(tmp_path / "old.pth", old))
    assert (report.loaded, report.total) == (102, 102)


def test_a_head_of_another_class_count_is_skipped_and_named(tmp_path: Path) -> None:
    source, target = build_net("mobilenet_v2", 1000), build_net("mobilenet_v2", 10)
    set_prior_bias(target, [0.1] * 10)
    own_head = head(target).weight.clone()
    report = load_weights(target, saved(tmp_path / "mobilenet_v2.pth", source.state_dict()))
    assert report.describe() == (
        "loaded 312 of 314 tensors from mobilenet_v2.pth; "
        "classifier.1.weight [1000, 1280] was not loaded: this model has [10, 1280]; "
        "classifier.1.bias [1000] was not loaded: this model has [10]"
    )
    assert torch.equal(head(target).weight, own_head)
    assert torch.allclose(torch.sigmoid(head(target).bias), torch.full((10,), 0.1))
    assert torch.equal(source.get_parameter("features.0.0.weight"), target.get_parameter("features.0.0.weight"))


def refused(path: Path, *words: str, name: str = "small") -> None:
    """Loading says every word, never the folder, and leaves the network as it was."""
    net = build_net(name, 3)
    before = [tensor.clone() for tensor in dict(net.state_dict()).values()]
    with pytest.raises(InvalidInput) as caught:
        load_weights(net, path)
    message = str(caught.value)
    assert all(word in message for word in (path.name, *words)), message
    assert str(path.parent) not in message
    assert all(torch.equal(a, b) for a, b in zip(before, dict(net.state_dict()).values(), strict=True))


def test_another_architecture_is_refused_with_the_first_names(tmp_path: Path) -> None:
    path = saved(tmp_path / "other.pth", build_net("resnet18", 3).state_dict())
    refused(path, "lacks 262", "features.0.0.weight", "has 122", "conv1.weight, bn1.weight", "...", name="mobilenet_v2")


def small_state() -> dict[str, Tensor]:
    return dict(build_net("small", 3).state_dict())


def test_one_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    state = small_state()
    del state["fc.bias"]
    refused(saved(tmp_path / "w.pth", state), "lacks 1 tensors (fc.bias)")


def test_one_tensor_too_many_is_refused_by_name(tmp_path: Path) -> None:
    refused(saved(tmp_path / "w.pth", {**small_state(), "extra.bias": torch.zeros(1)}), "(extra.bias)")


def test_a_wider_head_input_is_another_architecture(tmp_path: Path) -> None:
    refused(saved(tmp_path / "w.pth", {**small_state(), "fc.weight": torch.zeros(9, 7)}), "fc.weight is [9, 7] there")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((3,), float("nan")), "not finite"),
        (torch.zeros(3, dtype=torch.int64), "torch.int64 there"),
        (torch.zeros(3, dtype=torch.complex64), "torch.complex64 there"),
        (torch.zeros(3).to_sparse(), "not stored as a plain dense tensor"),
        (torch.zeros(3, device="meta"), "not stored as a plain dense tensor"),
    ],
)
def test_a_tensor_that_is_no_plain_number_array_is_refused(tmp_path: Path, tensor: Tensor, words: str) -> None:
    refused(saved(tmp_path / "w.pth", {**small_state(), "fc.bias": tensor}), "fc.bias", words)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, 7, {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    refused(saved(tmp_path / "w.pth", content), "holds no state dict")


@pytest.mark.parametrize("content", [{"fc.bias": "text"}, {3: torch.zeros(1)}])
def test_a_dict_of_other_things_is_refused(tmp_path: Path, content: object) -> None:
    refused(saved(tmp_path / "w.pth", content), "more than named tensors")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, legacy: bool, keep: float) -> None:
    path = tmp_path / "w.pth"
    torch.save(small_state(), path, _use_new_zipfile_serialization=not legacy)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))])
    refused(path, "cannot be read as plain tensors", "cut short")


def test_bytes_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x89PNG\r\n" + bytes(range(256)) * 8)
    refused(path, "cannot be read as plain tensors")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.pth", "cannot be opened", "No such file")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "cannot be opened")


class Hostile:
    """Unpickling this would write a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, bare: bool) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    if bare:
        path.write_bytes(pickle.dumps({"fc.bias": Hostile(mark)}))
    else:
        torch.save({"fc.bias": Hostile(mark)}, path)
    refused(path, "cannot be read as plain tensors", "never run")
    assert not mark.exists()
