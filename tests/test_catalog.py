"""Several models, versions and labels; loaded, exchanged and unloaded while they answer."""

import asyncio
import itertools
import json
import re
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from models.bundle import CARD_FILE
from models.errors import BundleError
from service.batch import Timed
from service.catalog import Catalog, Entry
from service.many import submit_all
from service.metrics import Metrics
from service.model_folder import find_models, open_graph, read_labels
from tests.foreign import FOREIGN, graph, relu, sequence, write_foreign
from tests.serving import SIZE, encoded, pictures, png_of, running, settings_of, write_linear
from tests.wire import binary, error_of, outputs_of, tensor

LOAD = "/v2/repository/models/linear/load"
UNLOAD = "/v2/repository/models/linear/unload"
LOSS = ("focal_loss", "1")
IMAGE = png_of(pictures(1, SIZE)[0])
BIG = encoded(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8), "PNG")


@asynccontextmanager
async def served(root: Path, **settings: Any) -> AsyncGenerator[httpx.AsyncClient]:
    async with running(settings_of(models=root, device="cpu", **settings)) as http:
        yield http


async def version_of(http: httpx.AsyncClient) -> str:
    answer = await http.post("/predict", content=IMAGE)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model"]["version"])


async def index(http: httpx.AsyncClient, **body: Any) -> dict[tuple[str, str], str]:
    rows = (await http.post("/v2/repository/index", json=body)).json()
    return {(row["name"], row["version"]): row["state"] for row in rows}


async def versions_in_metrics(http: httpx.AsyncClient) -> set[str]:
    text = (await http.get("/metrics")).text
    return set(re.findall(r'focalserve_model_info\{model="linear",provider="\w+",version="(\w+)"\} 1\.0', text))


async def test_the_newest_version_answers_and_the_others_are_not_loaded(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        write_linear(tmp_path, version=version)
    async with served(tmp_path) as http:
        assert await version_of(http) == "10"
        assert await index(http) == {
            LOSS: "READY",
            ("linear", "1"): "UNAVAILABLE",
            ("linear", "2"): "UNAVAILABLE",
            ("linear", "10"): "READY",
        }
        assert await index(http, ready=True) == {LOSS: "READY", ("linear", "10"): "READY"}
        assert "no such version; it has 10" in error_of(await http.get("/v2/models/linear/versions/1"), 404)


async def test_labels_say_which_versions_are_served_and_which_is_the_default(tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        write_linear(tmp_path, version=version)
    labels = tmp_path / "linear" / "labels.json"
    labels.write_text('{"stable": "1", "canary": "3"}')
    async with served(tmp_path) as http:
        assert await version_of(http) == "1"
        assert set(await index(http, ready=True)) == {LOSS, ("linear", "1"), ("linear", "3")}
        assert await versions_in_metrics(http) == {"1", "3"}
        labels.write_text('{"stable": "2"}')
        assert (await http.post(LOAD)).status_code == 200
        assert await version_of(http) == "2"
        assert await versions_in_metrics(http) == {"2", "3"}
        assert "no such version" in error_of(await http.get("/v2/models/linear/versions/canary"), 404)
        labels.write_text('{"stable": "9"}')
        assert "no version 9" in error_of(await http.post(LOAD))
        assert await version_of(http) == "2"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"stable": 1}', '{"stable": "7"}', '{"1": "2"}', '{"": "1"}', '{"a/b": "1"}', "\udcff"]
)
def test_a_labels_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "labels.json"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(BundleError, match=r"labels\.json"):
        read_labels(file, {"1": tmp_path, "2": tmp_path})


def test_models_are_found_as_bundles_graphs_and_files_and_never_in_hidden_folders(tmp_path: Path) -> None:
    write_linear(tmp_path / "root")
    write_foreign(tmp_path / "root", loose=relu(("n", 3)))
    (tmp_path / "root" / "graph" / "4").mkdir(parents=True)
    (tmp_path / "root" / "graph" / "4" / "model.onnx").write_bytes(relu(("n", 3)))
    shutil.copytree(tmp_path / "root" / "linear", tmp_path / "root" / ".linear")
    found = {name: set(versions) for name, versions in find_models(tmp_path / "root").items()}
    assert found == {"linear": {"1"}, "loose": {"1"}, "graph": {"4"}}
    (tmp_path / "root" / "linear" / "1" / "loss.onnx").touch()  # as a detector has it
    assert set(find_models(tmp_path / "root" / "linear" / "1")) == {"linear"}
    with pytest.raises(BundleError, match="no such folder"):
        find_models(tmp_path / "absent")


async def test_two_folders_that_hold_models_of_one_name_are_refused_and_reload_goes_by_name(tmp_path: Path) -> None:
    write_linear(tmp_path)
    (tmp_path / "linear").rename(tmp_path / "another")
    async with served(tmp_path) as http:
        assert (await http.post(LOAD)).status_code == 200
        write_linear(tmp_path / "root")
        shutil.copytree(tmp_path / "root" / "linear", tmp_path / "twin")
        assert "two folders hold a model named linear" in error_of(await http.post("/v2/repository/models/twin/load"))
        assert await version_of(http) == "1"


def test_the_default_is_the_stable_version_or_the_newest() -> None:
    versions: Any = {"2": "two", "10": "ten"}
    assert Entry(versions).default == "ten"  # type: ignore[comparison-overlap]
    assert Entry(versions, {"stable": "2"}).default == "two"  # type: ignore[comparison-overlap]


async def test_reloads_under_load_lose_not_one_request(tmp_path: Path) -> None:
    write_linear(tmp_path, version="1")
    seen: set[str] = set()
    body, headers = binary({}, image=pictures(2, SIZE))
    failed: list[str] = []
    async with served(tmp_path, max_batch=4) as http:
        busy = True

        async def ask(k: int) -> None:
            while busy:
                if k % 3 == 0:
                    answer = await http.post("/v2/models/linear/infer", content=body, headers=headers)
                else:
                    answer = await http.post("/predict", content=BIG if k % 3 == 1 else IMAGE)
                if answer.status_code != 200:
                    failed.append(answer.text)
                elif k % 3:
                    seen.add(answer.json()["model"]["version"])

        clients = [asyncio.create_task(ask(k)) for k in range(12)]
        for version in range(2, 14):
            write_linear(tmp_path, version=str(version))
            assert (await http.post(LOAD)).status_code == 200
            await asyncio.sleep(0.02)
        busy = False
        await asyncio.gather(*clients)
        assert failed == []
        assert await version_of(http) == "13"
    assert len(seen) > 5


async def test_a_bad_new_bundle_is_refused_with_words_and_the_old_one_serves_on(tmp_path: Path) -> None:
    write_linear(tmp_path, version="1")
    async with served(tmp_path) as http:
        card = write_linear(tmp_path, version="2") / CARD_FILE
        card.write_text(json.dumps({**json.loads(card.read_text()), "task": "dreams"}))
        said = error_of(await http.post(LOAD))
        assert "served on" in said and "task" in said
        assert await version_of(http) == "1"
        assert (await http.get("/v2/health/ready")).status_code == 200
        shutil.rmtree(card.parent)
        assert (await http.post(LOAD, json={})).status_code == 200


async def test_unload_drains_and_load_brings_it_back(tmp_path: Path) -> None:
    write_linear(tmp_path)
    write_foreign(tmp_path, other=relu(("n", 3)))
    async with served(tmp_path, max_batch=1, default_model="linear") as http:
        asked = [asyncio.create_task(http.post("/predict", content=BIG if k % 2 else IMAGE)) for k in range(60)]
        while (await http.get("/v2/models/linear/stats")).json()["model_stats"][0]["inference_count"] < 3:
            await asyncio.sleep(0.001)
        answer = await http.post(UNLOAD, json={"parameters": {"unload_dependents": False}})
        assert (answer.status_code, answer.content) == (200, b"")
        codes = {one.status_code for one in await asyncio.gather(*asked)}
        assert codes <= {200, 404} and 200 in codes
        assert (await http.get("/v2/models/linear/ready")).status_code == 404
        assert error_of(await http.post(UNLOAD), 404)
        assert (await index(http))[("linear", "1")] == "UNAVAILABLE"
        assert (await http.post(LOAD)).status_code == 200
        assert await version_of(http) == "1"


async def test_of_two_loads_at_once_the_second_is_told_so(tmp_path: Path) -> None:
    write_linear(tmp_path)
    async with served(tmp_path) as http:
        answers = await asyncio.gather(*(http.post(LOAD) for _ in range(5)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 409} and codes.count(200) >= 1
        assert "loaded already" in error_of(next(one for one in answers if one.status_code == 409), 409)


@pytest.mark.parametrize("body", ["5", "[]", '{"parameters": 5}', "{", "NaN"])
async def test_an_odd_body_of_a_load_is_refused(tmp_path: Path, body: str) -> None:
    write_linear(tmp_path)
    async with served(tmp_path) as http:
        error_of(await http.post(LOAD, content=body))


async def test_a_load_from_the_request_itself_is_not_offered(tmp_path: Path) -> None:
    write_linear(tmp_path)
    async with served(tmp_path) as http:
        for key in ("config", "file:1/model.onnx"):
            assert "not offered" in error_of(await http.post(LOAD, json={"parameters": {key: "x"}}), 501)
        for name in ("absent", "..", "x" * 300):
            error_of(await http.post(f"/v2/repository/models/{name}/load"), 404)


async def test_a_graph_without_a_card_takes_no_bundles_place(tmp_path: Path) -> None:
    write_linear(tmp_path)
    async with served(tmp_path) as http:
        (tmp_path / "linear" / "2").mkdir()
        (tmp_path / "linear" / "2" / "model.onnx").write_bytes(relu(("n", 3)))
        assert "linear/2: has no card.json" in error_of(await http.post(LOAD))
        assert await version_of(http) == "1"


async def test_the_name_of_the_loss_is_taken(tmp_path: Path) -> None:
    write_linear(tmp_path)
    async with served(tmp_path) as http:
        write_foreign(tmp_path, focal_loss=relu(("n", 3)))
        assert "is that of the loss" in error_of(await http.post("/v2/repository/models/focal_loss/load"))
        assert (await index(http))[LOSS] == "READY"


async def test_loading_can_be_switched_off(tmp_path: Path) -> None:
    write_linear(tmp_path)
    async with served(tmp_path, model_control=False) as http:
        assert "switched off" in error_of(await http.post(LOAD), 501)
        assert "switched off" in error_of(await http.post(UNLOAD), 501)
        assert (await index(http)) == {LOSS: "READY", ("linear", "1"): "READY"}


async def test_a_foreign_graph_that_cannot_be_served_is_refused_with_words(tmp_path: Path) -> None:
    write_linear(tmp_path)
    async with served(tmp_path, default_model="linear") as http:
        write_foreign(tmp_path, odd=sequence(), broken=b"garbage")
        said = error_of(await http.post("/v2/repository/models/odd/load"))
        assert "odd.onnx: the output y is a seq" in said and "only plain tensors" in said
        said = error_of(await http.post("/v2/repository/models/broken/load"))
        assert "broken.onnx: ONNX Runtime cannot load it: " in said
        rows = {row["name"]: row["reason"] for row in (await http.post("/v2/repository/index")).json()}
        assert rows["broken"] and said.endswith(rows["broken"].removeprefix("refused: ")) and rows["linear"] == ""
        assert await version_of(http) == "1"


CASES: dict[str, Any] = {
    "pooled": {"pixels": np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4)},
    "int64": {"x": np.arange(6).reshape(2, 3)},
    "fp16": {"x": np.arange(6, dtype=np.float16).reshape(2, 3)},
    "fp64": {"x": np.arange(6, dtype=np.float64).reshape(2, 3)},
    "uint8": {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)},
    "bool": {"x": np.array([[True, False, True]])},
    "words": {"x": np.array(["é".encode(), b""], np.object_)},
    "several": {name: np.arange(4, dtype=np.float32).reshape(2, 2) for name in ("a", "b")},
    "opset9": {"x": np.array([[-1, 2, 3]], np.float32)},
    "opset11": {"x": np.array([[-1, 2, 3]], np.float32)},
    "fixed": {"x": np.array([[-1, 2, 3], [1, 1, -1]], np.float32)},
    "free": {"x": np.full((1, 2, 3), -1, np.float32)},
    "unnamed": {"x": np.array([[-1, 2, 3]], np.float32)},
    "selected": {"x": np.array([0, 1, 0, 2], np.float32)},
    "scalar": {"x": np.array(-5, np.float32)},
}
WANT: dict[str, Any] = {
    "pooled": lambda pixels: {"means": pixels.mean((2, 3), keepdims=True)},
    "bool": lambda x: {"y": ~x},
    "words": lambda x: {"y": x},
    "uint8": lambda x: {"y": x},
    "several": lambda a, b: {"sum": a + b, "minus": -a, "shape": np.array(a.shape)},
    "selected": lambda x: {"y": np.flatnonzero(x)[:, None]},
    **{name: lambda x: {"y": x + x} for name in ("int64", "fp16", "fp64")},
    **{name: lambda x: {"y": np.maximum(x, 0)} for name in ("opset9", "opset11", "fixed", "free", "unnamed", "scalar")},
}


async def test_foreign_graphs_of_any_form_answer_in_binary_and_json_and_many_at_once(tmp_path: Path) -> None:
    write_foreign(tmp_path, **FOREIGN)

    async def ask(http: httpx.AsyncClient, name: str) -> None:
        inputs = CASES[name]
        body, headers = binary({"parameters": {"binary_data_output": True}}, **inputs)
        answers = [await http.post(f"/v2/models/{name}/infer", content=body, headers=headers)]
        if name != "fp16":
            document = {"inputs": [tensor(key, value) for key, value in inputs.items()]}
            answers.append(await http.post(f"/v2/models/{name}/infer", json=document))
        for answer in answers:
            found, want = outputs_of(answer), WANT[name](**inputs)
            assert list(found) == list(want)
            for key, value in want.items():
                assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
                assert (found[key] == value).all(), (name, key)

    async with served(tmp_path) as http:
        for name in FOREIGN:
            await ask(http, name)
        await asyncio.gather(*(ask(http, name) for name in FOREIGN for _ in range(10)))
        body, headers = binary({}, x=np.ones((1, 3), np.float16))
        assert "FP16 has no JSON form" in error_of(
            await http.post("/v2/models/fp16/infer", content=body, headers=headers)
        )
        assert "say which model" in (await http.post("/predict", content=IMAGE)).json()["detail"]
        said = (await http.post("/predict", json={"model": "fp64", "inputs": [{"image": "AAAA"}]})).json()["detail"]
        assert "has no card" in said


def heavy() -> bytes:
    """Softmax of a million numbers, over and over: no machine does that in a millisecond on one thread."""
    names = ["x", *(f"h{n}" for n in range(12)), "y"]
    nodes = [helper.make_node("Softmax", [a], [b]) for a, b in itertools.pairwise(names)]
    shape = ("n", 1_000_000)
    return graph(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)])


@pytest.mark.parametrize(
    ("data", "quick"),
    [
        (FOREIGN["pooled"], True),
        (FOREIGN["fixed"], True),
        (FOREIGN["scalar"], True),
        (FOREIGN["several"], False),
        (FOREIGN["unnamed"], False),
        (FOREIGN["words"], False),
        (FOREIGN["free"], False),
        (heavy(), False),
    ],
    ids=["pooled", "fixed", "scalar", "several", "unnamed", "words", "free", "heavy"],
)
def test_a_graph_is_quick_by_its_time_on_one_thread(data: bytes, quick: bool) -> None:
    assert bool(open_graph(data, "cpu", 0, 16)[1]) is quick
    assert bool(open_graph(data, "cpu", 1, 16)[1]) is quick
    assert not open_graph(data, "cpu", 2, 16)[1]


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        ({"runs": 2}, ", or 2 runs of"),
        ({"runs": 3, "threads": 1}, ", or 3 runs of"),
        ({"runs": 1}, None),
        ({"threads": 1}, None),
    ],
    ids=str,
)
async def test_runs_side_by_side_are_as_many_as_are_asked_for(
    tmp_path: Path, asked: dict[str, int], how: str | None
) -> None:
    write_linear(tmp_path, rounds=1000)
    catalog = Catalog(settings_of(models=tmp_path, device="cpu", **asked), Metrics())
    await catalog.load_all()
    try:
        served = catalog.get("linear")
        assert how in served.how if how else "side by side" not in served.how
        answers = await submit_all(served.batcher, list(pictures(40, SIZE)))
        assert [type(one) for one in answers] == [Timed] * 40
    finally:
        await catalog.close()


@pytest.mark.parametrize(
    ("cores", "workers", "runs"), [(2, 0, 1), (2, 1, 2), (1, 0, 1), (4, 0, 1), (4, 2, 2), (16, 0, 2), (2, 4, 1)]
)
async def test_processes_and_their_threads_share_the_cores_for_many_pictures_of_a_quick_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, runs: int
) -> None:
    write_linear(tmp_path)
    monkeypatch.setattr("service.served.usable_cores", lambda: cores)
    monkeypatch.setattr("service.settings.usable_cores", lambda: cores)
    catalog = Catalog(settings_of(models=tmp_path, device="cpu", workers=workers), Metrics())
    await catalog.load_all()
    try:
        how = f"{runs} runs of 64 side by side" if runs > 1 else "of 64 in a thread"
        assert catalog.get("linear").how.endswith(f" in the event loop, or {how}")
    finally:
        await catalog.close()
