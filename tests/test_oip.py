"""The Open Inference Protocol v2 over HTTP: what a client of it may ask, by hand."""

import gzip
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.foreign import FOREIGN, write_foreign
from tests.serving import SIZE, b64, linear_logits, linear_weights, pictures, png_of, running, settings_of, write_linear
from tests.wire import LENGTH, binary, error_of, outputs_of, tensor

pytestmark = pytest.mark.asyncio(loop_scope="module")
LABELS = ("crane", "heron", "stork")
URL = "/v2/models/linear/infer"
IMAGES = pictures(3, SIZE)
WANT = linear_logits(IMAGES, linear_weights(3))
FILES = np.array([png_of(image) for image in IMAGES], np.object_)
P = np.exp(WANT) / np.exp(WANT).sum(axis=1, keepdims=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[httpx.AsyncClient]:
    root: Path = tmp_path_factory.mktemp("models")
    write_linear(root, LABELS)
    write_linear(root, LABELS, version="2")
    (root / "linear" / "labels.json").write_text('{"stable": "1", "canary": "2"}')
    write_foreign(root, **FOREIGN)
    settings = settings_of(models=root, device="cpu", default_model="linear", max_body_bytes=1_000_000, max_images=50)
    async with running(settings) as client:
        yield client


async def post(http: httpx.AsyncClient, url: str, document: Any, **arrays: Any) -> httpx.Response:
    body, headers = binary(document, **arrays)
    return await http.post(url, content=body, headers=headers)


async def test_the_server_says_what_it_is_and_that_it_lives(http: httpx.AsyncClient) -> None:
    found = (await http.get("/v2")).json()
    assert found["name"] == "focalserve"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= set(found["extensions"])
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await http.get(path)).json() == {"live": True, "ready": True}


@pytest.mark.parametrize("path", ["", "/versions/1", "/versions/2", "/versions/stable", "/versions/canary"])
async def test_a_version_or_its_label_may_stand_in_the_path(http: httpx.AsyncClient, path: str) -> None:
    found = (await http.get(f"/v2/models/linear{path}")).json()
    assert (found["name"], found["versions"], found["platform"]) == ("linear", ["1", "2"], "onnx_onnxv1")
    assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert [one["name"] for one in found["outputs"]] == ["logits", "probabilities"]
    assert json.loads(found["properties"]["labels"]) == list(LABELS)
    assert all(isinstance(value, str) for value in found["properties"].values())
    assert (await http.get(f"/v2/models/linear{path}/ready")).json() == {"name": "linear", "ready": True}
    answer = await http.post(f"/v2/models/linear{path}/infer", json={"inputs": [tensor("image", IMAGES)]})
    assert answer.json()["model_version"] == ("2" if path[10:] in ("2", "canary") else "1")


@pytest.mark.parametrize("wanted", ["json", "binary"])
@pytest.mark.parametrize("sent", ["json", "nested", "binary", "files", "base64"])
async def test_pixels_and_files_go_in_and_logits_come_out_in_json_and_in_binary(
    http: httpx.AsyncClient, sent: str, wanted: str
) -> None:
    document: dict[str, Any] = {"id": "7", "parameters": {"binary_data_output": wanted == "binary"}}
    arrays: dict[str, Any] = {}
    if sent == "json":
        document["inputs"] = [tensor("image", IMAGES)]
    elif sent == "nested":
        document["inputs"] = [{**tensor("image", IMAGES), "data": IMAGES.tolist()}]
    elif sent == "base64":
        document["inputs"] = [tensor("image", np.array([b64(file).encode() for file in FILES], np.object_))]
    else:
        arrays = {"image": IMAGES if sent == "binary" else FILES}
    if arrays:
        answer = await post(http, URL, document, **arrays)
    else:
        answer = await http.post(URL, json=document)
    found = outputs_of(answer)
    np.testing.assert_allclose(found["logits"], WANT, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], P, atol=1e-5)
    assert (LENGTH.lower() in answer.headers) == (wanted == "binary")
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    head = json.loads(answer.content[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("linear", "1", "7")
    for name in ("queue", "infer", "total"):
        assert f"{name};dur=" in answer.headers["server-timing"]


async def test_each_output_may_be_binary_or_not_by_itself(http: httpx.AsyncClient) -> None:
    outputs = [{"name": "probabilities", "parameters": {"binary_data": False}}, {"name": "logits"}]
    document = {"parameters": {"binary_data_output": True}, "outputs": outputs}
    found = outputs_of(await post(http, URL, document, image=IMAGES[:1]))
    assert list(found) == ["probabilities", "logits"]
    np.testing.assert_allclose(found["logits"], WANT[:1], rtol=1e-4, atol=1e-4)


async def test_a_raw_body_is_one_tensor_and_the_answer_is_binary(http: httpx.AsyncClient) -> None:
    answer = await http.post(URL, content=IMAGES[1].tobytes(), headers={LENGTH: "0"})
    assert answer.headers["content-type"] == "application/octet-stream"
    np.testing.assert_allclose(outputs_of(answer)["logits"], WANT[1:2], rtol=1e-4, atol=1e-4)
    answer = await http.post(URL, content=IMAGES[1].tobytes()[:-1], headers={LENGTH: "0"})
    assert "bytes" in error_of(answer)
    answer = await http.post("/v2/models/words/infer", content="añb".encode(), headers={LENGTH: "0"})
    assert outputs_of(answer)["y"].tolist() == ["añb".encode()]
    for name in ("several", "free"):
        answer = await http.post(f"/v2/models/{name}/infer", content=b"12345678", headers={LENGTH: "0"})
        assert "raw body" in error_of(answer)


async def test_classification_gives_value_index_and_label(http: httpx.AsyncClient) -> None:
    outputs = [{"name": name, "parameters": {"classification": 2}} for name in ("logits", "probabilities")]
    found = outputs_of(await http.post(URL, json={"inputs": [tensor("image", IMAGES)], "outputs": outputs}))
    for name, rows in (("logits", WANT), ("probabilities", P)):
        for row, line in zip(rows, found[name], strict=True):
            assert len(line) == 2
            value, index, label = line[0].decode().split(":")
            assert int(index) == row.argmax() and label == LABELS[int(index)]
            assert float(value) == pytest.approx(row.max(), abs=1e-3)


async def test_statistics_count_what_was_answered(http: httpx.AsyncClient) -> None:
    async def stats() -> dict[str, Any]:
        (found,) = (await http.get("/v2/models/linear/versions/2/stats")).json()["model_stats"]
        return dict(found)

    before, began = await stats(), time.time_ns() // 1_000_000
    url = "/v2/models/linear/versions/2/infer"
    await http.post(url, json={"inputs": [tensor("image", IMAGES)]})
    error_of(await http.post(url, json={"inputs": []}))
    after = await stats()
    assert (after["name"], after["version"]) == ("linear", "2")
    assert began <= after["last_inference"] <= time.time() * 1e3
    assert all(after["inference_stats"][name]["ns"] > 0 for name in ("success", "fail", "compute_infer"))
    assert after["inference_stats"]["compute_output"]["ns"] > before["inference_stats"]["compute_output"]["ns"]
    assert after["inference_count"] - before["inference_count"] == 3
    assert 1 <= after["execution_count"] - before["execution_count"] <= 3
    for name in ("success", "fail"):
        assert after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] == 1
    assert (
        sum(row["batch_size"] * row["compute_infer"]["count"] for row in after["batch_stats"])
        == (after["inference_count"])
    )
    everything = (await http.get("/v2/models/stats")).json()["model_stats"]
    assert {one["name"] for one in everything} >= {"linear", *FOREIGN}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/linear/trace/setting"),
        ("GET", "/v2/logging"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"),
        ("GET", "/v2/cudasharedmemory/status"),
    ],
)
async def test_what_is_not_offered_says_so(http: httpx.AsyncClient, method: str, path: str) -> None:
    assert "is not offered" in error_of(await http.request(method, path), 501)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/absent"),
        ("GET", "/v2/models/absent/ready"),
        ("POST", "/v2/models/absent/infer"),
        ("POST", "/v2/models/linear/versions/9/infer"),
        ("GET", "/v2/models/linear/versions/preview"),
        ("GET", "/v2/models/..%2F..%2Fetc/ready"),
        ("GET", f"/v2/models/{'x' * 256}"),
        ("POST", "/v2//models/linear/infer"),
        ("POST", "/v2/models//infer"),
        ("GET", "/v2/nothing"),
    ],
)
async def test_what_is_not_there_is_404_with_a_text(http: httpx.AsyncClient, method: str, path: str) -> None:
    error_of(await http.request(method, path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", URL, "POST"),
        ("OPTIONS", URL, "POST"),
        ("DELETE", "/v2/models/linear", "GET"),
        ("POST", "/v2/models/linear/versions/1/ready", "GET"),
        ("POST", "/v2/models/focal_loss/stats", "GET"),
        ("POST", "/v2", "GET"),
        ("PUT", "/v2/health/live", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("GET", "/v2/repository/models/linear/load", "POST"),
    ],
)
async def test_another_method_is_405_and_told_the_right_one(
    http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await http.request(method, path)
    assert f"it has {allowed}" in error_of(answer, 405) and answer.headers["allow"] == allowed


async def test_only_answers_of_inference_are_packed(http: httpx.AsyncClient) -> None:
    """tritonclient.http.aio always asks for gzip, and unpacks no other."""
    answer = await http.get("/v2/models/stats", headers={"accept-encoding": "gzip"})
    assert len(answer.content) > 4096 and "content-encoding" not in answer.headers


async def test_gzip_is_taken_and_given(http: httpx.AsyncClient) -> None:
    body, headers = binary({"parameters": {"binary_data_output": True}}, image=IMAGES)
    headers |= {"content-encoding": "gzip", "accept-encoding": "gzip"}
    found = outputs_of(await http.post(URL, content=gzip.compress(body), headers=headers))
    np.testing.assert_allclose(found["logits"], WANT, rtol=1e-4, atol=1e-4)
    x = np.ones((2000, 3), np.int64)
    big, more = binary({"parameters": {"binary_data_output": True}}, x=x)
    for accepted, packed in (("gzip", True), ("identity", False), ("gzip;q=0", False), ("br, gzip;q=0.5", True)):
        answer = await http.post("/v2/models/int64/infer", content=big, headers={**more, "accept-encoding": accepted})
        assert (answer.headers.get("content-encoding") == "gzip") == packed, accepted
        assert np.array_equal(outputs_of(answer)["y"], x * 2)


async def test_the_callers_request_id_comes_back(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v2", headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    answer = await http.get("/v2", headers={"x-request-id": "no spaces please"})
    assert answer.headers["x-request-id"] not in ("", "no spaces please")


async def test_encoded_images_have_limits_and_say_which_is_bad(http: httpx.AsyncClient) -> None:
    files = FILES.copy()
    files[1] = files[1][:40]
    assert "image 1" in error_of(await post(http, URL, {}, image=files))
    many = np.array([b""] * 51, np.object_)
    assert "50 are allowed" in error_of(await post(http, URL, {}, image=many))
    assert "50 are allowed" in error_of(await post(http, URL, {}, image=np.zeros((51, SIZE, SIZE, 3), np.uint8)))
    assert "no images" in error_of(await post(http, URL, {}, image=np.zeros((0, SIZE, SIZE, 3), np.uint8)))
    assert "BYTES of shape" in error_of(await post(http, URL, {}, image=np.array([[b"a", b"b"]], np.object_)))
    alone = [{"name": "image", "datatype": "BYTES", "shape": [], "data": ["aGVq"]}]
    assert "BYTES of shape" in error_of(await http.post(URL, json={"inputs": alone}))
    text = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["not base64!"]}]
    assert "image 0" in error_of(await http.post(URL, json={"inputs": text}))
