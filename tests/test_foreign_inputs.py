"""Inputs of graphs without a card that are odd but served: no rows, values that may be left out, sides unsaid."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
from onnx import TensorProto, helper, numpy_helper

from models.errors import BundleError
from service.runtime import Runtime, TensorSpec
from tests.foreign import graph, relu, write_foreign
from tests.serving import running, settings_of
from tests.wire import Json, error_of, outputs_of, tensor

FLOAT = TensorProto.FLOAT


def scaled(ir: int = 10) -> bytes:
    """y = x * factor, where factor is 2 unless it is given."""
    sides = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", ("n", 3)), ("factor", (1,)))]
    made = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scaled",
        sides,
        [helper.make_tensor_value_info("y", FLOAT, ("n", 3))],
        [numpy_helper.from_array(np.array([2], np.float32), "factor")],
    )
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 9)], ir_version=ir).SerializeToString())


def unranked() -> bytes:
    """y = max(x, 0), of any number of sides."""
    sides = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "unranked", sides[:1], sides[1:])
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    )


def of_a_domain() -> bytes:
    """An operator that is not ONNX's."""
    node = helper.make_node("Foo", ["x"], ["y"], domain="no.where")
    x, y = (helper.make_tensor_value_info(name, FLOAT, (1,)) for name in ("x", "y"))
    made = helper.make_graph([node], "odd", [x], [y])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("no.where", 1)]
    return bytes(helper.make_model(made, opset_imports=sets, ir_version=10).SerializeToString())


def batchwise() -> bytes:
    """A form of RNN that ONNX Runtime refuses when it loads it."""
    weights = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.ones((1, 2, side), np.float32)))
        for name, side in (("w", 3), ("r", 2))
    ]
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=2, layout=1)
    return graph([*weights, node], [("x", FLOAT, (1, 4, 3))], [("y", FLOAT, (1, 4, 1, 2))])


@pytest_asyncio.fixture
async def http(tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    write_foreign(tmp_path, relu=relu(("n", 3)), scaled=scaled(), old=scaled(ir=3), unranked=unranked())
    async with running(settings_of(models=tmp_path, device="cpu")) as client:
        yield client


async def ask(http: httpx.AsyncClient, name: str, **inputs: np.ndarray) -> httpx.Response:
    body = {"inputs": [tensor(key, value) for key, value in inputs.items()]}
    return await http.post(f"/v2/models/{name}/infer", json=body)


async def properties(http: httpx.AsyncClient, name: str) -> Json:
    return dict((await http.get(f"/v2/models/{name}")).json().get("properties", {}))


async def test_no_rows_are_answered_with_none_alone_and_among_others(http: httpx.AsyncClient) -> None:
    sent = [np.full((n % 3, 3), n - 9, np.float32) for n in range(30)]
    for one, answer in zip(sent, await asyncio.gather(*(ask(http, "relu", x=one) for one in sent)), strict=True):
        found = outputs_of(answer)["y"]
        assert found.shape == one.shape and (found == np.maximum(one, 0)).all()


async def test_an_input_with_a_value_of_its_own_may_be_given_and_reaches_nobody_else(http: httpx.AsyncClient) -> None:
    (optional,) = json.loads((await properties(http, "scaled"))["optional_inputs"])
    assert optional == {"name": "factor", "datatype": "FP32", "shape": [1]}
    x = np.ones((2, 3), np.float32)

    async def factor(n: int) -> None:
        given = {} if n % 2 else {"factor": np.array([n], np.float32)}
        assert (outputs_of(await ask(http, "scaled", x=x, **given))["y"] == (2 if n % 2 else n)).all()

    await asyncio.gather(*map(factor, range(40)))
    assert "takes shape [1], not [2]" in error_of(await ask(http, "scaled", x=x, factor=np.ones(2, np.float32)))
    assert "takes FP32, not INT64" in error_of(await ask(http, "scaled", x=x, factor=np.ones(1, np.int64)))
    assert "input x is missing" in error_of(await ask(http, "scaled", factor=np.ones(1, np.float32)))


async def test_old_files_list_their_weights_among_the_inputs_which_are_none(http: httpx.AsyncClient) -> None:
    assert await properties(http, "old") == {}
    assert "no input factor" in error_of(await ask(http, "old", x=np.ones((1, 3)), factor=np.ones(1, np.float32)))
    assert (outputs_of(await ask(http, "old", x=np.ones((1, 3), np.float32)))["y"] == 2).all()


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 2, 2, 2), (0, 2)])
async def test_where_the_graph_does_not_say_how_many_sides_any_number_is_taken(
    http: httpx.AsyncClient, shape: tuple[int, ...]
) -> None:
    x = np.full(shape, -1, np.float32)
    found = outputs_of(await ask(http, "unranked", x=x))["y"]
    assert found.shape == shape and (found == 0).all()
    assert (await http.get("/v2/models/unranked")).json()["inputs"][0]["shape"] == [-1]


def test_a_scalar_is_not_taken_for_a_tensor_of_any_rank() -> None:
    scalar, free = Runtime(relu(()), "cpu", 1), Runtime(unranked(), "cpu", 1)
    assert scalar.inputs[0] == TensorSpec("x", "FP32", ()) and not scalar.inputs[0].takes((1,))
    assert free.inputs[0] == TensorSpec("x", "FP32", (-1,), ranked=False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            graph([helper.make_node("Foo", ["x"], ["y"])], [("x", FLOAT, (1,))], [("y", FLOAT, (1,))]),
            "No Op registered",
        ),
        (relu((1,), ir=99), "Unsupported model IR version: 99"),
        (relu((1,), opset=99), "Opset 99 is under development"),
        (graph([helper.make_node("Relu", ["x"], ["y"])], [("x", 14, (1,))], [("y", 14, (1,))]), r"complex64"),
        (of_a_domain(), "no.where:Foo.* is not a registered function/op"),
        (batchwise(), "Batchwise recurrent operations .* are not supported"),
        (relu((1,))[:40], "protobuf parsing failed"),
        (b"", "No graph was found"),
    ],
    ids=["operator", "ir", "opset", "type", "domain", "layout", "cut", "empty"],
)
def test_a_graph_that_cannot_be_loaded_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words) as refused:
        Runtime(data, "cpu", 1, "odd.onnx")
    said = str(refused.value)
    assert said.startswith("odd.onnx: ONNX Runtime cannot load it: ")
    assert "onnxruntime_src" not in said and "::" not in said and "[ONNXRuntimeError]" not in said
