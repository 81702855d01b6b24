"""Numbers that an operator of a graph without a card does not take are the caller's fault, and nobody else's."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
from onnx import TensorProto, helper, numpy_helper

from tests.foreign import graph, write_foreign
from tests.serving import running, settings_of
from tests.wire import error_of, outputs_of, tensor

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
TABLE = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.array([10, 20, 30], np.float32)))
LOOKUP = graph([TABLE, helper.make_node("Gather", ["w", "x"], ["y"])], [("x", INT64, ("n",))], [("y", FLOAT, ("n",))])
PRODUCT = graph(
    [helper.make_node("MatMul", ["a", "b"], ["y"])],
    [("a", FLOAT, ("n", "k")), ("b", FLOAT, ("k", "m"))],
    [("y", FLOAT, ("n", "m"))],
)
RESHAPED = graph(
    [helper.make_node("Reshape", ["x", "to"], ["y"])],
    [("x", FLOAT, (None,)), ("to", INT64, (1,))],
    [("y", FLOAT, (None,))],
)
SIZED = graph([helper.make_node("ConstantOfShape", ["to"], ["y"])], [("to", INT64, (2,))], [("y", FLOAT, (None, None))])


LSTM = graph(
    [
        *(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.ones(shape, np.float32)))
            for name, shape in (("w", (1, 8, 3)), ("r", (1, 8, 2)))
        ),
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2),
    ],
    [("x", FLOAT, ("steps", "n", 3))],
    [("y", FLOAT, ("steps", 1, "n", 2))],
)


@pytest_asyncio.fixture
async def http(tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    write_foreign(tmp_path, lookup=LOOKUP, product=PRODUCT, reshaped=RESHAPED, sized=SIZED, lstm=LSTM)
    async with running(settings_of(models=tmp_path, device="cpu")) as client:
        yield client


async def ask(http: httpx.AsyncClient, name: str, **inputs: np.ndarray) -> httpx.Response:
    body = {"inputs": [tensor(key, value) for key, value in inputs.items()]}
    return await http.post(f"/v2/models/{name}/infer", json=body)


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("lookup", {"x": np.array([7])}, "its Gather failed: indices element out of data bounds, idx=7"),
        ("product", {"a": np.ones((2, 3), np.float32), "b": np.ones((4, 4), np.float32)}, "its MatMul failed"),
        ("reshaped", {"x": np.ones(5, np.float32), "to": np.array([4])}, "its Reshape failed"),
    ],
    ids=["index", "sides", "count"],
)
async def test_what_an_operator_does_not_take_is_refused_with_words(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, name: str, inputs: dict[str, np.ndarray], words: str
) -> None:
    answer = await ask(http, name, **inputs)
    assert answer.status_code == 400
    said = error_of(answer)
    assert words in said and "/" not in said and "::" not in said
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_numbers_that_ask_for_more_memory_than_there_is_are_refused(http: httpx.AsyncClient) -> None:
    said = error_of(await ask(http, "sized", to=np.array([10**7, 10**7])))
    assert said == "this input makes the model's ConstantOfShape ask for more memory than there is"


async def test_an_empty_tensor_does_not_end_the_process_of_an_lstm(http: httpx.AsyncClient) -> None:
    for shape in ((2, 0, 3), (0, 1, 3)):
        assert "by its LSTM or GRU" in error_of(await ask(http, "lstm", x=np.zeros(shape, np.float32)))
    assert outputs_of(await ask(http, "lstm", x=np.ones((2, 1, 3), np.float32)))["y"].shape == (2, 1, 1, 2)


async def test_one_bad_index_fails_nobody_elses_request(http: httpx.AsyncClient) -> None:
    sent = [np.array([n % 4]) for n in range(40)]
    answers = await asyncio.gather(*(ask(http, "lookup", x=one) for one in sent))
    for one, answer in zip(sent, answers, strict=True):
        if one[0] == 3:
            assert answer.status_code == 400 and "idx=3" in error_of(answer)
        else:
            assert outputs_of(answer)["y"].tolist() == [10.0 * (one[0] + 1)]
