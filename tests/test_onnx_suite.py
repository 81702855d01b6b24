"""Models of ONNX's own test suite, one operator each in all its forms: served, they answer as in a bare session."""

import asyncio
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from models.errors import BundleError
from service.runtime import Runtime
from tests.foreign import write_foreign
from tests.serving import running, settings_of
from tests.wire import binary, error_of, outputs_of

EVERY = 10
"""Of some 1,880 one in so many, that the suite stays short; 1 takes two minutes."""
IR = 10
AT_A_TIME = 32
_BY_CHANCE = ("random", "bernoulli", "dropout", "multinomial")
Arrays = dict[str, NDArray[Any]]


def cases() -> dict[str, tuple[bytes, Arrays]]:
    """Models by name with their inputs; those that are not refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = [one for one in collect_testcases(None) if not any(word in one.name for word in _BY_CHANCE)]
    kept = {}
    for one in found[::EVERY]:
        assert one.model is not None and one.data_sets is not None
        one.model.ir_version = min(one.model.ir_version, IR)
        data = one.model.SerializeToString()
        try:
            Runtime(data, "cpu", 1)
        except BundleError:
            continue
        names = [side.name for side in one.model.graph.input]
        kept[one.name] = (data, {name: array(value) for name, value in zip(names, one.data_sets[0][0], strict=True)})
    return kept


def array(value: Any) -> NDArray[Any]:
    """As numpy has it; text as BYTES."""
    given = np.asarray(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)
    if given.dtype.kind not in "OUS":
        return given
    encoded = [one if isinstance(one, bytes) else str(one).encode() for one in given.ravel()]
    return np.array(encoded, np.object_).reshape(given.shape)


def bare(data: bytes, inputs: Arrays) -> Arrays | None:
    """What a session says; None where it fails."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    as_text = {
        key: one if one.dtype != np.object_ else np.array([word.decode() for word in one.ravel()]).reshape(one.shape)
        for key, one in inputs.items()
    }
    try:
        outputs = session.run(None, as_text)
    except Exception:
        return None
    return {side.name: array(one) for side, one in zip(session.get_outputs(), outputs, strict=True)}


def same(found: Mapping[str, NDArray[Any]], want: Arrays) -> bool:
    """To the bit, or but for the order of sums."""
    return list(found) == list(want) and all(
        (found[name].dtype, found[name].shape) == (one.dtype, one.shape)
        and (
            np.allclose(found[name], one, rtol=1e-4, atol=1e-5, equal_nan=True)
            if one.dtype.kind == "f"
            else np.array_equal(found[name], one)
        )
        for name, one in want.items()
    )


@pytest.mark.slow
async def test_models_of_all_operators_answer_as_in_a_bare_session_alone_and_in_company(tmp_path: Path) -> None:
    models = cases()
    assert len(models) > 100
    write_foreign(tmp_path, **{name: data for name, (data, _) in models.items()})

    async def ask(http: httpx.AsyncClient, name: str) -> None:
        data, inputs = models[name]
        body, headers = binary({"parameters": {"binary_data_output": True}}, **inputs)
        answer = await http.post(f"/v2/models/{name}/infer", content=body, headers=headers)
        want = bare(data, inputs)
        if want is None:
            assert "the model does not take this input" in error_of(answer), name
        else:
            assert same(outputs_of(answer), want), name

    async with running(settings_of(models=tmp_path, device="cpu")) as http:
        for name in models:
            await ask(http, name)
        names = list(models)
        for at in range(0, len(names), AT_A_TIME):
            await asyncio.gather(*(ask(http, name) for name in names[at : at + AT_A_TIME] for _ in range(3)))
