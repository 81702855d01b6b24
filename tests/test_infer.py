"""Hostile and mistaken requests for inference: each is refused with words, and the model answers as before."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.foreign import FOREIGN, write_foreign
from tests.serving import problem_of, running, settings_of, write_linear
from tests.wire import LENGTH, binary, error_of, outputs_of, tensor

pytestmark = pytest.mark.asyncio(loop_scope="module")
URL = "/v2/models/opset11/infer"
X = np.array([[-1.0, 2.0, 3.0]], np.float32)
GOOD = tensor("x", X)
BINARY = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[httpx.AsyncClient]:
    root: Path = write_foreign(tmp_path_factory.mktemp("models"), **FOREIGN)
    async with running(settings_of(models=root, device="cpu", max_body_bytes=2_000_000)) as client:
        yield client


async def refused(http: httpx.AsyncClient, words: str, body: bytes | str, **headers: str) -> None:
    answer = await http.post(URL, content=body, headers={name.replace("_", "-"): v for name, v in headers.items()})
    assert words in error_of(answer), answer.text
    good = await http.post(URL, json={"inputs": [GOOD]})
    assert outputs_of(good)["y"].tolist() == [[0.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "inputs"),
        ("null", "inputs"),
        ("{}", "inputs"),
        ('{"inputs": {}}', "inputs"),
        ('{"inputs": [5]}', "inputs.0"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [NaN, 1, 1]}]}', "JSON"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [Infinity, 1, 1]}]}', "JSON"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1e999, 1, 1]}]}', ""),
        ('{"inputs": [{"name": "\\ud800", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}', ""),
        (b'{"inputs": "\xff"}', "JSON"),
        ("\ufeff{}", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"inputs": [' + "[" * 30 + "]" * 30 + "]}", "inputs.0"),
        ('{"inputs": [' + "[" * 31 + "]" * 31 + "]}", "nested more than 32 deep"),
        ('{"inputs": [], "inputs": []}', "same key twice"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "data": [2]}]}', "same key twice"),
        ('{"inputs": [1, {"name": "x", "name": "y"}]}', "same key twice"),
        ('{"inputs": [' + "9" * 5000 + "]}", ""),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0.5, true, 2]}]}', "no FP32"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0.5, false, 2]}]}', "no FP32"),
    ],
    ids=range(22),
)
async def test_what_is_no_request_is_refused(http: httpx.AsyncClient, body: bytes | str, words: str) -> None:
    await refused(http, words, body)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"inputs": []}, "input x is missing"),
        ({"inputs": [GOOD, GOOD]}, "twice"),
        ({"inputs": [GOOD, {**GOOD, "name": "z"}]}, "no input z"),
        ({"inputs": [{**GOOD, "name": "X"}]}, "no input X"),
        ({"inputs": [tensor("x", X.astype(np.float64))]}, "takes FP32, not FP64"),
        ({"inputs": [tensor("x", np.array([[b"a", b"b", b"c"]], np.object_))]}, "takes FP32, not BYTES"),
        ({"inputs": [tensor("x", X[0])]}, "takes shape [-1, 3], not [3]"),
        ({"inputs": [tensor("x", X[:, :2])]}, "takes shape [-1, 3], not [1, 2]"),
        ({"inputs": [{**GOOD, "shape": [2**31, 2**31]}]}, "elements"),
        ({"inputs": [{**GOOD, "shape": [-1, 3]}]}, "shape"),
        ({"inputs": [{**GOOD, "data": [1.0]}]}, "shape says 3 elements, data has 1"),
        ({"inputs": [{**GOOD, "data": [[[1.0]], [2.0], 3.0]}]}, "unevenly"),
        ({"inputs": [{**GOOD, "shape": [2, 3], "data": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0]]}]}, "unevenly"),
        ({"inputs": [{**GOOD, "shape": [2, 3], "data": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}]}, "nested as [3, 2]"),
        ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "binary_data_output should be true or false"),
        ({"inputs": [{**GOOD, "data": {}}]}, "list"),
        ({"inputs": [{**GOOD, "parameters": 5}]}, "parameters"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 12}}]}, "binary_data_size"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": -1}}]}, "binary_data_size"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": "12"}}]}, "binary_data_size"),
        ({"inputs": [GOOD], "id": 5}, "id"),
        ({"inputs": [GOOD], "parameters": []}, "parameters"),
        ({"inputs": [GOOD], "outputs": {}}, "outputs"),
        ({"inputs": [GOOD], "outputs": [5]}, "outputs.0"),
        ({"inputs": [GOOD], "outputs": [{"name": "z"}]}, "no output z"),
        ({"inputs": [GOOD], "outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": "2"}}]}, "classification"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": -2}}]}, "classification"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "binary_data should be"),
        ({"inputs": [GOOD], "outputs": [{"name": f"y{k}"} for k in range(2000)]}, "outputs"),
        ({"inputs": [{**GOOD, "name": f"x{k}"} for k in range(2000)]}, "inputs"),
    ],
    ids=range(31),
)
async def test_a_request_that_does_not_fit_the_model_is_refused(
    http: httpx.AsyncClient, document: Any, words: str
) -> None:
    await refused(http, words, json.dumps(document))


async def test_colons_in_text_are_no_keys(http: httpx.AsyncClient) -> None:
    document = {"id": 'a:"b": {c:', "inputs": [GOOD], "more": [1, {"a": {"b": "::"}}]}
    answer = await http.post(URL, json=document)
    assert answer.json()["id"] == document["id"] and outputs_of(answer)["y"].shape == (1, 3)


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "999999999999999999999", "1e3", "0x10", " ", "\u00b2"])
async def test_a_lying_length_of_the_json_is_refused(http: httpx.AsyncClient, length: str) -> None:
    body, _ = binary({}, x=X)
    answer = await http.post(URL, content=body, headers=[(LENGTH.encode(), length.encode())])
    error_of(answer)


@pytest.mark.parametrize("change", [-1, 1, -12, 100])
async def test_missing_and_trailing_bytes_are_refused(http: httpx.AsyncClient, change: int) -> None:
    body, headers = binary({}, x=X)
    body = body[:change] if change < 0 else body + bytes(change)
    error_of(await http.post(URL, content=body, headers=headers))


async def test_a_size_in_binary_is_held_against_the_shape(http: httpx.AsyncClient) -> None:
    for size, data in ((8, 8), (16, 16), (0, 0), (2**62, 12)):
        text = json.dumps({"inputs": [{**BINARY, "parameters": {"binary_data_size": size}}]}).encode()
        error_of(await http.post(URL, content=text + bytes(data), headers={LENGTH: str(len(text))}))
    both = json.dumps({"inputs": [{**BINARY, "data": [1, 2, 3]}]}).encode()
    answer = await http.post(URL, content=both + X.tobytes(), headers={LENGTH: str(len(both))})
    assert "both data and binary_data_size" in error_of(answer)


async def test_odd_encodings_and_long_bodies_are_refused_with_text(http: httpx.AsyncClient) -> None:
    body = json.dumps({"inputs": [GOOD]}).encode()
    for encoding, data in (("br", body), ("gzip", body), ("gzip", b""), ("gzip", b"\x1f\x8b\x08")):
        error_of(await http.post(URL, content=data, headers={"content-encoding": encoding}))
    assert "2000000 bytes" in error_of(await http.post(URL, content=b" " * 2_000_001))


async def test_binary_tensors_may_begin_at_any_byte(http: httpx.AsyncClient) -> None:
    for pad in range(16):
        x = np.arange(300, dtype=np.float32).reshape(100, 3)
        body, headers = binary({"id": "i" * pad, "parameters": {"binary_data_output": True}}, x=x)
        assert np.array_equal(outputs_of(await http.post(URL, content=body, headers=headers))["y"], x)


async def test_nan_in_binary_comes_back_as_it_is_and_in_json_as_null(http: httpx.AsyncClient) -> None:
    odd = np.array([[np.nan, np.inf, 1.0]], np.float32)
    body, headers = binary({"parameters": {"binary_data_output": True}}, x=odd)
    np.testing.assert_array_equal(outputs_of(await http.post(URL, content=body, headers=headers))["y"], odd)
    body, headers = binary({}, x=odd)
    answer = await http.post(URL, content=body, headers=headers)
    assert answer.json()["outputs"][0]["data"] == [None, None, 1.0]


async def test_json_has_a_limit_of_its_own_and_binary_tensors_may_be_longer(tmp_path: Path) -> None:
    write_foreign(tmp_path, **FOREIGN)
    write_linear(tmp_path)
    x = np.ones((1000, 3), np.float32)
    settings = settings_of(models=tmp_path, device="cpu", max_json_bytes=1000, default_model="linear")
    async with running(settings) as http:
        body, headers = binary({}, x=x)
        assert (await http.post(URL, content=body, headers=headers)).status_code == 200
        for url in (URL, "/v2/models/focal_loss/infer"):
            answer = await http.post(url, json={"inputs": [tensor("x", x)]})
            assert "more than 1000 bytes of JSON" in error_of(answer)
        for path in ("/predict", "/loss"):
            answer = await http.post(path, json={"inputs": [{"image": "A" * 1000}]})
            assert "more than 1000 bytes of JSON" in problem_of(answer, 413, "too-large")["detail"]


async def test_of_requests_that_say_the_same_each_is_answered_by_its_own_bytes(http: httpx.AsyncClient) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 1, 3)).astype(np.float32)
    for row in rows:
        body, headers = binary({}, x=row)
        assert np.array_equal(outputs_of(await http.post(URL, content=body, headers=headers))["y"], np.maximum(row, 0))
        for wrong in (body[:-4], body + b"more"):
            error_of(await http.post(URL, content=wrong, headers=headers))
    for name in ("one", "two"):
        body, headers = binary({"id": name}, x=rows[0])
        answer = await http.post(URL, content=body, headers=headers)
        assert json.loads(answer.content)["id"] == name


async def test_a_refused_head_is_refused_each_time(http: httpx.AsyncClient) -> None:
    text = json.dumps({"inputs": [{**BINARY, "shape": [1, -3]}]}).encode()
    for _ in range(3):
        answer = await http.post(URL, content=text + X.tobytes(), headers={LENGTH: str(len(text))})
        assert "whole numbers from 0 on" in error_of(answer)
