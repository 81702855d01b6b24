"""The model `focal_loss` of the Open Inference Protocol."""

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from models.losses import sigmoid_focal, softmax_focal
from tests.golden import Case, assert_close, cases
from tests.serving import running, settings_of, write_linear
from tests.wire import binary, error_of, outputs_of, tensor

pytestmark = pytest.mark.asyncio(loop_scope="module")
URL = "/v2/models/focal_loss/infer"
LOGITS = np.array([[2.5, -1.0, 0.3], [0.1, 0.2, 3.0]], np.float32)
LABELS = np.array([0, 1])
ALL = [{"name": name, "parameters": {"binary_data": True}} for name in ("loss", "log_p", "margin", "gradient")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[httpx.AsyncClient]:
    root: Path = tmp_path_factory.mktemp("models")
    write_linear(root)
    async with running(settings_of(models=root, device="cpu")) as client:
        yield client


async def ask(
    http: httpx.AsyncClient, logits: NDArray[Any], labels: NDArray[Any], outputs: Any = ALL, **parameters: Any
) -> httpx.Response:
    document = {"parameters": parameters, "outputs": outputs}
    body, headers = binary(document, logits=logits, labels=labels)
    return await http.post(URL, content=body, headers=headers)


@pytest.mark.parametrize("case", [case for case in cases() if case.soft == "expected"], ids=lambda case: case.id)
async def test_a_golden_case_comes_out_of_the_model(http: httpx.AsyncClient, case: Case) -> None:
    parameters: dict[str, Any] = {
        "gamma": case.gamma,
        "mode": case.kind,
        "label_smoothing": case.smoothing,
        "alpha": str(case.alpha) if isinstance(case.alpha, list) else case.alpha,
        "ignore_index": case.ignore_index,
    }
    if case.kind == "softmax" and isinstance(case.alpha, float):
        parameters["alpha_mode"] = "uniform"
    found = outputs_of(await ask(http, case.logits, case.targets, **parameters))
    assert_close(found["loss"].sum(), np.sum(terms_of(case).values), 1e-12, 1e-290, "sum of losses")
    if case.reduction == "none":
        assert_close(found["loss"], case.expected["loss"], 1e-12, 1e-290, "loss")
        assert_close(found["gradient"], case.expected["grad"], 1e-10, 1e-290, "gradient")
    if "log_pt" in case.expected:
        valid = terms_of(case).valid
        want = np.asarray(case.expected["log_pt"], np.float64)[valid]
        assert_close(found["log_p"][valid], want, 1e-10, 1e-290, "log_p")


def terms_of(case: Case) -> Any:
    run = softmax_focal if case.kind == "softmax" else sigmoid_focal
    return run(case.logits, case.targets, **case.options())


async def test_the_gradient_comes_only_when_it_is_asked_for(http: httpx.AsyncClient) -> None:
    inputs = [tensor("logits", LOGITS), tensor("labels", LABELS)]
    found = outputs_of(await http.post(URL, json={"inputs": inputs}))
    assert set(found) == {"loss", "log_p", "margin"}
    want = softmax_focal(LOGITS.astype(np.float64), LABELS)
    np.testing.assert_allclose(found["loss"], want.values, rtol=1e-15)
    assert want.margin is not None
    np.testing.assert_allclose(found["margin"], want.margin, rtol=1e-15)
    found = outputs_of(await http.post(URL, json={"inputs": inputs, "outputs": [{"name": "gradient"}]}))
    np.testing.assert_allclose(found["gradient"], want.gradient, rtol=1e-15)


async def test_parameters_change_the_loss(http: httpx.AsyncClient) -> None:
    plain = outputs_of(await ask(http, LOGITS, LABELS, gamma=0))["loss"]
    weighted = outputs_of(await ask(http, LOGITS, LABELS, gamma=0, alpha="[0.5, 2, 1]"))["loss"]
    np.testing.assert_allclose(weighted, plain * [0.5, 2.0], rtol=1e-15)
    ignored = outputs_of(await ask(http, LOGITS, LABELS, ignore_index=1))["loss"]
    assert ignored[0] > 0 and ignored[1] == 0
    sigmoid = outputs_of(await ask(http, LOGITS, np.eye(3, dtype=np.float32)[:2], mode="sigmoid", alpha=0.25))
    assert sigmoid["loss"].shape == (2, 3)


async def test_soft_labels_have_a_loss_but_no_log_p(http: httpx.AsyncClient) -> None:
    soft = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], np.float32)
    answer = await ask(http, LOGITS, soft, None)
    assert answer.status_code == 200
    body = answer.json()["outputs"]
    assert [one["name"] for one in body] == ["loss", "log_p", "margin"]
    assert body[1]["data"] == [None, None] and all(value > 0 for value in body[0]["data"])


@pytest.mark.parametrize(
    ("logits", "labels", "parameters", "words"),
    [
        (LOGITS, LABELS, {"gamma": -1}, "gamma"),
        (LOGITS, LABELS, {"gamma": "2"}, "gamma"),
        (LOGITS, LABELS, {"gamma": True}, "gamma"),
        (LOGITS, LABELS, {"alpha": 0.5}, "alpha"),
        (LOGITS, LABELS, {"alpha": "[1, 2]"}, "alpha"),
        (LOGITS, LABELS, {"alpha": "nonsense"}, "alpha"),
        (LOGITS, LABELS, {"alpha": '["a", 1, 2]'}, "alpha"),
        (LOGITS, LABELS, {"alpha": "[" * 100_000}, "alpha"),
        (LOGITS, LABELS, {"alpha": "[NaN, 1, 1]"}, "alpha"),
        (LOGITS, LABELS, {"alpha_mode": "any", "alpha": 1}, "alpha_mode"),
        (LOGITS, LABELS, {"mode": "hinge"}, "mode"),
        (LOGITS, LABELS, {"ignore_index": "1"}, "ignore_index"),
        (LOGITS, LABELS, {"label_smoothing": 2}, "smoothing"),
        (LOGITS, np.array([0, 3]), {}, "label|target"),
        (LOGITS, np.array([-1, 0]), {}, "label|target"),
        (LOGITS, np.array([0]), {}, "need as many labels"),
        (LOGITS, np.array([b"a", b"b"], np.object_), {}, "logits are"),
        (LOGITS.astype(np.int64), LABELS, {}, "logits are"),
        (LOGITS[None], LABELS, {}, "logits are"),
        (LOGITS[:1], np.array(0), {}, "logits are"),
        (LOGITS[0], np.array(0), {}, "logits are"),
        (np.full((1, 3), np.nan, np.float32), np.array([0]), {}, "finite"),
        (np.zeros((2, 1), np.float32), LABELS, {}, "."),
    ],
    ids=range(23),
)
async def test_what_does_not_fit_is_refused_with_words(
    http: httpx.AsyncClient, logits: Any, labels: Any, parameters: dict[str, Any], words: str
) -> None:
    answer = await ask(http, logits, labels, **parameters)
    assert re.search(words, error_of(answer))


async def test_inputs_are_named_when_they_are_missing_or_unknown(http: httpx.AsyncClient) -> None:
    assert "labels is missing" in error_of(await http.post(URL, json={"inputs": [tensor("logits", LOGITS)]}))
    three = [tensor("logits", LOGITS), tensor("labels", LABELS), tensor("weights", LOGITS)]
    assert "no input weights" in error_of(await http.post(URL, json={"inputs": three}))


async def test_it_has_statistics_like_any_model(http: httpx.AsyncClient) -> None:
    async def stats(path: str = "focal_loss/") -> Any:
        return next(
            one
            for one in (await http.get(f"/v2/models/{path}stats")).json()["model_stats"]
            if one["name"] == "focal_loss"
        )

    before = await stats()
    await ask(http, LOGITS, LABELS)
    error_of(await http.post(URL, json={"inputs": []}))
    after = await stats()
    assert after == await stats("")
    assert after["inference_count"] - before["inference_count"] == len(LOGITS)
    assert after["execution_count"] - before["execution_count"] == 1
    for name in ("success", "fail"):
        assert after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] == 1
    assert after["last_inference"] > 0


async def test_it_has_metadata_and_a_version_like_any_model(http: httpx.AsyncClient) -> None:
    found = (await http.get("/v2/models/focal_loss")).json()
    assert found["versions"] == ["1"] and [one["name"] for one in found["inputs"]] == ["logits", "labels"]
    assert "gamma" in found["properties"]["parameters"]
    assert (await http.get("/v2/models/focal_loss/versions/1/ready")).json() == {"name": "focal_loss", "ready": True}
    for path in ("/v2/models/focal_loss/versions/2", "/v2/models/focal_loss/versions/2/ready"):
        assert "no such version" in error_of(await http.get(path), 404)
    assert "no such version" in error_of(await http.post("/v2/models/focal_loss/versions/2/infer", json={}), 404)


async def test_many_rows_are_shared_out_and_come_back_in_order(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.loss_model._NUMBERS", 30_000)
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0.0, 3.0, (20_000, 7)).astype(np.float32), rng.integers(0, 7, 20_000)
    answer = await ask(http, logits, labels, gamma=1.5)
    found, want = outputs_of(answer), softmax_focal(logits.astype(np.float64), labels, gamma=1.5)
    assert np.allclose(found["loss"], want.values, rtol=1e-12, atol=0.0)
    assert want.log_pt is not None and np.allclose(found["log_p"], want.log_pt, rtol=1e-12, atol=0.0)
    assert np.allclose(found["gradient"], want.gradient, rtol=1e-12, atol=1e-300)
    labels[19_999] = 7
    assert "19999" in error_of(await ask(http, logits, labels))
