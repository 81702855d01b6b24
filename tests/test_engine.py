import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from models.bundle import Bundle, read_bundle
from models.card import ModelCard
from models.errors import BundleError, DeviceUnavailable
from models.fit import Pixels
from service.engine import Engine
from service.errors import InferenceFailed
from service.runtime import CPU, CUDA, cuda_driver_present
from service.warm_up import batch_size
from tests.serving import (
    SIZE,
    b64,
    encoded,
    linear_card,
    linear_graph,
    linear_logits,
    linear_weights,
    pictures,
    png_of,
)

LABELS = ["a", "b", "c"]
WEIGHTS = linear_weights(3)
HAS_CUDA = CUDA in ort.get_available_providers() and cuda_driver_present()
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device, or a build of ONNX Runtime without CUDA")
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this machine has CUDA")


def bundle(card: ModelCard | None = None, inside: ModelCard | None = None, **graph: Any) -> Bundle:
    card = card or linear_card(LABELS, WEIGHTS)
    return Bundle(card, linear_graph(WEIGHTS, inside or card, **graph))


def refused(broken: Bundle, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        Engine(broken, "cpu", 1)
    text = str(caught.value)
    assert "/" not in text and "\n" not in text and len(text) < 300, text


def test_logits_are_those_of_the_graph() -> None:
    engine = Engine(bundle(), "cpu", 1)
    images = pictures(5, SIZE)
    np.testing.assert_allclose(engine.run(images), linear_logits(images, WEIGHTS), rtol=1e-4, atol=1e-3)
    assert engine.run(images).dtype == np.float32
    assert batch_size(engine.blank, 1, engine.quick) == 1
    assert 1 <= batch_size(engine.blank, 8, engine.quick) <= 8


@pytest.mark.parametrize("size", [1, 8, 32])
def test_the_size_of_the_batch_does_not_change_the_answer(artifacts: Path, size: int) -> None:
    engine = Engine(read_bundle(artifacts / "tiny" / "1"), "cpu", 2)
    images = pictures(32, 28)
    parts = np.concatenate([engine.run(images[start : start + size]) for start in range(0, 32, size)])
    alone = np.concatenate([engine.run(image[None]) for image in images])
    np.testing.assert_allclose(parts, alone, rtol=1e-5, atol=1e-5)


def test_many_threads_may_run_at_once(artifacts: Path) -> None:
    engine = Engine(read_bundle(artifacts / "tiny" / "1"), "cpu", 2)
    images = pictures(16, 28)
    want = [engine.run(image[None]) for image in images]
    gate = threading.Barrier(8)

    def ask(k: int) -> bool:
        gate.wait()
        return all(np.array_equal(engine.run(images[(k + i) % 16][None]), want[(k + i) % 16]) for i in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_the_report_says_which_provider_runs_it() -> None:
    device = Engine(bundle(), "cpu", 1).device
    assert (device.asked, device.provider, device.reason) == ("cpu", CPU, "")
    assert str(device) == CPU


@without_cuda
def test_cuda_asked_for_where_there_is_none_is_refused_with_the_reason() -> None:
    with pytest.raises(DeviceUnavailable, match=r"cuda was asked for, but .*(no NVIDIA driver|no CUDA provider)"):
        Engine(bundle(), "cuda", 1)


@without_cuda
def test_auto_says_why_it_runs_on_the_cpu() -> None:
    device = Engine(bundle(), "auto", 1).device
    assert device.provider == CPU
    assert "driver" in device.reason or "no CUDA provider" in device.reason
    assert device.reason in str(device)


@pytest.mark.gpu
@needs_cuda
def test_cuda_asked_for_is_cuda_and_agrees_with_the_cpu(artifacts: Path) -> None:
    found = read_bundle(artifacts / "tiny" / "1")
    cuda, cpu = Engine(found, "cuda", 1), Engine(found, "cpu", 2)
    assert cuda.device.provider == CUDA and cuda.device.reason == ""
    images = pictures(64, 28)
    want = cpu.run(images)
    assert np.abs(cuda.run(images) - want).max() <= 2e-2 * max(1.0, float(np.abs(want).max()))


@pytest.mark.gpu
@needs_cuda
def test_auto_takes_cuda_where_it_works() -> None:
    assert Engine(bundle(), "auto", 1).device.provider == CUDA


def test_a_golden_pair_that_is_not_met_is_refused() -> None:
    card = linear_card(LABELS, WEIGHTS)
    wrong = card.golden.model_copy(update={"logits": [value + 1.0 for value in card.golden.logits]})
    refused(bundle(card.model_copy(update={"golden": wrong})), "golden input gives other logits")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b64(png_of(pictures(1, SIZE + 1)[0])), "not of the input's size"),
        (b64(b"no picture"), "golden.image_png"),
        (b64(png_of(pictures(1, SIZE)[0])[:60]), "golden.image_png"),
        ("", "golden.image_png"),
        (b64(encoded(np.zeros((20_000, 1, 3), np.uint8), "PNG")), "golden.image_png"),
    ],
    ids=["size", "text", "cut", "empty", "long"],
)
def test_a_golden_image_that_cannot_be_the_input_is_refused(image: str, words: str) -> None:
    card = linear_card(LABELS, WEIGHTS)
    refused(bundle(card.model_copy(update={"golden": card.golden.model_copy(update={"image_png": image})})), words)


def test_a_model_that_answers_its_golden_input_with_nan_is_refused() -> None:
    weights = np.full_like(WEIGHTS, np.nan)
    card = linear_card(LABELS, WEIGHTS)
    refused(Bundle(card, linear_graph(weights, card)), "off by nan")


def test_other_labels_in_the_card_than_in_the_graph_are_refused() -> None:
    refused(
        bundle(linear_card(["a", "c", "b"], WEIGHTS), inside=linear_card(LABELS, WEIGHTS)), "labels, classes differ"
    )


def test_a_graph_without_a_card_inside_is_refused() -> None:
    refused(Bundle(linear_card(LABELS, WEIGHTS), linear_graph(WEIGHTS, None)), "metadata_props has no focalserve.card")


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"name": "picture"}, "the input is not `image`"),
        ({"kind": TensorProto.FLOAT}, "the input is not `image` uint8"),
        ({"batch": 1}, "batch size is fixed"),
        ({"output": "scores"}, "the output is not `logits`"),
    ],
    ids=["input name", "input dtype", "fixed batch", "output name"],
)
def test_a_graph_of_another_form_is_refused(graph: dict[str, Any], words: str) -> None:
    refused(bundle(**graph), words)


def test_a_graph_of_another_size_or_another_number_of_classes_is_refused() -> None:
    card = linear_card(LABELS, WEIGHTS)
    bigger = linear_weights(3, SIZE * 2)
    refused(Bundle(card, linear_graph(bigger, card, size=SIZE * 2)), r"uint8 \[N, 8, 8, 3\]")
    wider = linear_weights(4)
    refused(Bundle(card, linear_graph(wider, card)), r"float32 \[N, 3\]")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda graph: b"",
        lambda graph: b"garbage" * 100,
        lambda graph: graph[: len(graph) // 2],
        lambda graph: graph[:9],
    ],
    ids=["empty", "garbage", "half", "nine bytes"],
)
def test_what_is_not_a_graph_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    card = linear_card(LABELS, WEIGHTS)
    refused(Bundle(card, spoil(linear_graph(WEIGHTS, card))), "model.onnx")


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, SIZE, SIZE + 1, 3), np.uint8), np.zeros((2, SIZE, SIZE, 3), np.float32), np.zeros(3, np.uint8)],
    ids=["shape", "dtype", "rank"],
)
def test_images_of_another_form_fail_without_the_runtimes_own_words(images: Pixels) -> None:
    with pytest.raises(InferenceFailed) as caught:
        Engine(bundle(), "cpu", 1).run(images)
    assert str(caught.value) == "the model's run failed"
