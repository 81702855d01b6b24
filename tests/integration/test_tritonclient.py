"""The service as NVIDIA's own client sees it, unchanged, over a real connection."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from models.losses import softmax_focal
from tests.foreign import FOREIGN, relu, sequence, write_foreign
from tests.integration.launch import ROOT, Server, launched
from tests.serving import SIZE, linear_logits, linear_weights, pictures, png_of, write_linear
from tests.test_catalog import CASES, WANT

LABELS = ("crane", "heron", "stork")
IMAGES = pictures(3, SIZE)
FILES = np.array([png_of(image) for image in IMAGES], np.object_)
LOGITS = linear_logits(IMAGES, linear_weights(3))
RAPIDOCR = Path(os.environ.get("TEST_FIXTURES", ROOT / ".venv" / "fixtures")) / (
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
)
COMPRESSION = [(None, None), ("gzip", "gzip"), ("gzip", None), (None, "gzip")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_linear(root, LABELS)
    write_linear(root, LABELS, version="2")
    return write_foreign(root, **FOREIGN)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with launched(root) as running:
        running.until("process began")
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    found = triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4)
    yield found
    found.close()


def inputs_of(binary: bool = True, kind: Any = triton, **arrays: Any) -> list[Any]:
    """Tensors as the client wants them."""
    found = []
    for name, array in arrays.items():
        one = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array, binary_data=binary)
        found.append(one)
    return found


def wanted(*names: str, binary: bool = True, classes: int = 0) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary, class_count=classes) for name in names]


def refused(status: int, call: Any, *args: Any, **more: Any) -> str:
    """The words of a refusal, as the client shows them."""
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    assert caught.value.status() == str(status), caught.value
    text = str(caught.value)
    assert text.startswith(f"[{status}] ") and "{" not in text and len(text) < 400
    return text


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("linear") and client.is_model_ready("linear", "2")
    assert not client.is_model_ready("absent") and not client.is_model_ready("linear", "7")
    assert client.get_server_metadata()["name"] == "focalserve"
    found = client.get_model_metadata("linear")
    assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert client.get_model_metadata("focal_loss")["outputs"][0]["name"] == "loss"


@pytest.mark.parametrize(("request_zip", "response_zip"), COMPRESSION)
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_pixels_to_logits(
    client: Any, binary_in: bool, binary_out: bool, request_zip: str | None, response_zip: str | None
) -> None:
    found = client.infer(
        "linear",
        inputs_of(binary_in, image=IMAGES),
        request_id="abc",
        outputs=wanted("logits", "probabilities", binary=binary_out),
        request_compression_algorithm=request_zip,
        response_compression_algorithm=response_zip,
        headers={"X-Request-ID": "mine"},
        priority=1,
        timeout=1000,
        parameters={"mine": "x"},
    )
    np.testing.assert_allclose(found.as_numpy("logits"), LOGITS, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.as_numpy("probabilities").sum(axis=1), 1.0, rtol=1e-5)
    assert found.get_response()["id"] == "abc" and found.get_response()["model_version"] == "2"


def test_encoded_pictures_are_bytes_elements(client: Any) -> None:
    for version in ("", "2"):
        found = client.infer("linear", inputs_of(image=FILES), model_version=version)
        np.testing.assert_allclose(found.as_numpy("logits"), LOGITS, rtol=1e-4, atol=1e-4)
    bad = FILES.copy()
    bad[2] = b"no picture"
    assert "image 2" in refused(400, client.infer, "linear", inputs_of(image=bad))


def test_class_count(client: Any) -> None:
    found = client.infer("linear", inputs_of(image=IMAGES), outputs=wanted("probabilities", classes=2))
    rows = found.as_numpy("probabilities")
    assert rows.shape == (3, 2)
    for row, logits in zip(rows, LOGITS, strict=True):
        value, index, label = row[0].decode().split(":")
        assert int(index) == logits.argmax() and label == LABELS[int(index)] and 0.0 < float(value) <= 1.0


def test_the_focal_loss_is_a_model(client: Any) -> None:
    logits, labels = LOGITS.astype(np.float32), np.array([0, 1, 2])
    found = client.infer(
        "focal_loss",
        inputs_of(logits=logits, labels=labels),
        outputs=wanted("loss", "gradient"),
        parameters={"gamma": 0.5, "alpha": "[1, 2, 0.5]"},
    )
    want = softmax_focal(logits.astype(np.float64), labels, gamma=0.5, alpha=[1, 2, 0.5])
    np.testing.assert_allclose(found.as_numpy("loss"), want.values, rtol=1e-12)
    np.testing.assert_allclose(found.as_numpy("gradient"), want.gradient, rtol=1e-10)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_model(client: Any, name: str, binary: bool) -> None:
    metadata = client.get_model_metadata(name)
    assert "properties" not in metadata and metadata["versions"] == ["1"]
    arrays = CASES[name]
    if name == "fp16" and not binary:
        pytest.skip("FP16 has no JSON form")
    names = [one["name"] for one in metadata["outputs"]]
    found = client.infer(name, inputs_of(binary, **arrays), outputs=wanted(*names, binary=binary))
    for key, want in WANT[name](**arrays).items():
        got = found.as_numpy(key)
        if want.dtype == np.object_ and not binary:
            want = np.array([one.decode() for one in want], np.object_)
        assert got.shape == want.shape and (got == want).all()


def test_errors_are_shown_as_text(client: Any) -> None:
    x = np.zeros((1, 3), np.float32)
    assert "no model of that name" in refused(404, client.infer, "absent", inputs_of(x=x))
    assert "no such version" in refused(404, client.get_model_metadata, "linear", "9")
    assert "takes FP32" in refused(400, client.infer, "opset11", inputs_of(x=x.astype(np.int64)))
    assert "takes shape" in refused(400, client.infer, "opset11", inputs_of(x=x[:, :2]))
    assert "no input z" in refused(400, client.infer, "opset11", inputs_of(z=x))
    assert "no output z" in refused(400, client.infer, "opset11", inputs_of(x=x), outputs=wanted("z"))
    for call in (
        client.get_trace_settings,
        client.get_log_settings,
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
    ):
        assert "not offered" in refused(501, call)


def test_many_threads_get_their_own_answers(server: Server) -> None:
    port = server.port

    def ask(thread: int) -> bool:
        with triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4) as client:
            good = True
            for k in range(30):
                x = np.full((1 + k % 3, 3), 100 * thread + k, np.float32)
                pending = [client.async_infer("linear", inputs_of(image=IMAGES[k % 3 : k % 3 + 1])) for _ in range(3)]
                good &= bool((client.infer("opset11", inputs_of(x=x)).as_numpy("y") == x).all())
                for one in pending:
                    good &= np.allclose(one.get_result().as_numpy("logits"), LOGITS[k % 3], rtol=1e-3, atol=1e-3)
            return good

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(6)))


def test_statistics_index_load_and_unload(client: Any, root: Path) -> None:
    before = client.get_inference_statistics("opset9")["model_stats"][0]["inference_count"]
    client.infer("opset9", inputs_of(x=np.zeros((5, 3), np.float32)))
    assert client.get_inference_statistics("opset9", "1")["model_stats"][0]["inference_count"] == before + 5
    assert len(client.get_inference_statistics()["model_stats"]) >= len(FOREIGN)
    rows = {(one["name"], one["version"]): one["state"] for one in client.get_model_repository_index()}
    assert rows[("linear", "2")] == "READY" and rows[("linear", "1")] == "UNAVAILABLE"
    client.unload_model("opset9")
    assert not client.is_model_ready("opset9")
    client.load_model("opset9")
    assert client.is_model_ready("opset9")
    write_foreign(root, odd=sequence(), late=relu(("n", 3)))
    assert "only plain tensors" in refused(400, client.load_model, "odd")
    client.load_model("late")
    assert client.infer("late", inputs_of(x=np.full((1, 3), -1, np.float32))).as_numpy("y").tolist() == [[0, 0, 0]]
    assert "not offered" in refused(501, client.load_model, "late", config="{}")
    refused(404, client.load_model, "absent")
    (root / "odd.onnx").unlink()


@pytest.mark.parametrize(("request_zip", "response_zip"), COMPRESSION)
async def test_the_asyncio_client(server: Server, request_zip: str | None, response_zip: str | None) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert await client.is_server_ready() and await client.is_model_ready("linear")
        assert (await client.get_model_metadata("linear"))["name"] == "linear"

        async def ask(array: Any, binary: bool) -> Any:
            return await client.infer(
                "linear",
                inputs_of(image=array),
                outputs=wanted("logits", binary=binary),
                request_compression_algorithm=request_zip,
                response_compression_algorithm=response_zip,
            )

        for found in await asyncio.gather(*(ask(array, k % 2 == 0) for k in range(10) for array in (IMAGES, FILES))):
            np.testing.assert_allclose(found.as_numpy("logits"), LOGITS, rtol=1e-4, atol=1e-4)
        x = np.arange(6000).reshape(2000, 3)
        found = await client.infer("int64", inputs_of(x=x), response_compression_algorithm=response_zip)
        assert np.array_equal(found.as_numpy("y"), 2 * x)
        with pytest.raises(InferenceServerException, match="no model of that name"):
            await client.infer("absent", inputs_of(x=x))


@pytest.mark.skipif(not RAPIDOCR.exists(), reason="needs the packages of tests/fixtures.txt; make test fetches them")
def test_a_published_classifier_of_text_direction(tmp_path: Path) -> None:
    write_foreign(tmp_path, direction=RAPIDOCR.read_bytes())
    with launched(tmp_path) as server:
        server.until("process began")
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        (entry,), (out,) = (client.get_model_metadata("direction")[side] for side in ("inputs", "outputs"))
        assert entry["datatype"] == "FP32" and entry["shape"][1] == 3 and out["shape"][-1] == 2
        x = np.random.default_rng(0).normal(size=(2, 3, 48, 192)).astype(np.float32)
        both = client.infer("direction", inputs_of(True, triton, **{entry["name"]: x})).as_numpy(out["name"])
        np.testing.assert_allclose(both.sum(axis=1), 1.0, rtol=1e-5)
        alone = client.infer("direction", inputs_of(True, triton, **{entry["name"]: x[1:]})).as_numpy(out["name"])
        np.testing.assert_allclose(both[1:], alone, rtol=1e-4, atol=1e-6)
        client.close()
