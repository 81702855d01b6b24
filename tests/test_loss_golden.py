"""The golden set through POST /loss, JSON in and out."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from tests.golden import Case, assert_close, cases
from tests.serving import running, settings_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
RTOL, ATOL = 1e-9, 1e-290


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(artifacts: Path) -> AsyncGenerator[httpx.AsyncClient]:
    async with running(settings_of(models=artifacts, device="cpu")) as client:
        yield client


def request_of(case: Case) -> dict[str, Any]:
    """Logits that are not finite stand at ignored places only; JSON cannot carry them, so 0 is sent there."""
    logits = np.where(np.isfinite(case.logits), case.logits, 0.0)
    columns: tuple[NDArray[Any], NDArray[Any]] = (logits, case.targets)
    if case.logits.ndim == 1:
        columns = (logits[:, None], case.targets[:, None])
    body: dict[str, Any] = {
        "logits": columns[0].tolist(),
        "labels": columns[1].tolist(),
        "activation": case.kind,
        "gamma": case.gamma,
        "alpha": case.alpha,
        "reduction": case.reduction,
        "label_smoothing": case.smoothing,
        "ignore_index": case.ignore_index,
        "return_gradient": True,
    }
    if case.kind == "softmax" and isinstance(case.alpha, float):
        body["alpha_mode"] = "uniform"
    return body


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases()])
async def test_a_golden_case_comes_out_of_the_service(http: httpx.AsyncClient, case: Case) -> None:
    if case.soft != "expected":
        pytest.skip(f"{case.id}: /loss has no soft-target convention but `expected`, this is `{case.soft}`")
    answer = await http.post("/loss", json=request_of(case))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    items, summary = body["items"], body["loss"]
    if case.reduction == "none":
        want = np.asarray(case.expected["loss"], np.float64)
        per_item = want.reshape(len(items), -1).sum(axis=1) if case.kind == "sigmoid" else want
        assert_close([item["loss"] or 0.0 for item in items], per_item, RTOL, ATOL, "loss")
    elif case.expected["loss"] is None:
        assert summary["value"] is None and summary["count"] == 0
    else:
        assert_close(summary["value"], case.expected["loss"], RTOL, ATOL, "value")
    want_gradient = np.asarray(case.expected["grad"], np.float64)
    gradient = np.asarray([item["gradient"] for item in items]).reshape(case.logits.shape)
    assert_close(gradient, np.broadcast_to(want_gradient, gradient.shape), RTOL, ATOL, "gradient")
