"""Rows that look at each other are not run with those of another request."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from service.lone_rows import rows_stand_alone
from service.model_folder import open_graph
from service.runtime import Runtime
from tests.foreign import FOREIGN, Side, doubled, graph, relu, unary, write_foreign
from tests.serving import running, settings_of
from tests.wire import outputs_of, tensor

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def one_to_one(*nodes: NodeProto, kind: int = FLOAT, out: int = FLOAT, shape: Sequence[Side] = ("n", 3)) -> bytes:
    """A graph from x to y."""
    return graph(nodes, [("x", kind, shape)], [("y", out, shape)])


def constant(name: str, value: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


SOFTMAX = one_to_one(helper.make_node("Softmax", ["x"], ["y"], axis=0))
SUMS = one_to_one(constant("axis", np.array(0)), helper.make_node("CumSum", ["x", "axis"], ["y"]))
CENTRED = one_to_one(
    constant("axis", np.array([0])),
    helper.make_node("ReduceMax", ["x", "axis"], ["m"], keepdims=1),
    helper.make_node("Sub", ["x", "m"], ["y"]),
)
SORTED = one_to_one(
    helper.make_node("Shape", ["x"], ["k"], start=0, end=1),
    helper.make_node("TopK", ["x", "k"], ["y", "places"], axis=0),
    shape=("n", 1),
)
QUANTIZED = one_to_one(
    helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
)
SCALED = one_to_one(
    constant("all", np.array([0, 1])),
    helper.make_node("ReduceMax", ["x", "all"], ["most"], keepdims=1),
    constant("bytes", np.array(255, np.float32)),
    constant("bound", np.array(9, np.float32)),
    helper.make_node("Greater", ["most", "bound"], ["large"]),
    helper.make_node("Div", ["x", "bytes"], ["small"]),
    helper.make_node("Where", ["large", "small", "x"], ["y"]),
)
NOISY = one_to_one(helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"]))
LOOKED_UP = one_to_one(
    constant("table", np.arange(2, dtype=np.float32)), helper.make_node("Gather", ["table", "x"], ["y"]), kind=INT64
)
OF_SIDE_32 = one_to_one(
    constant("w", np.ones((32, 32), np.float32)), helper.make_node("MatMul", ["x", "w"], ["y"]), shape=("n", "k")
)


@pytest.mark.parametrize(
    "data",
    [SOFTMAX, SUMS, CENTRED, SORTED, QUANTIZED, SCALED, NOISY, FOREIGN["selected"]],
    ids=[
        "softmax",
        "cumulative",
        "less the largest",
        "sorted",
        "quantized",
        "scaled",
        "random",
        "as many as there are",
    ],
)
def test_rows_that_change_with_the_others_are_told(data: bytes) -> None:
    assert Runtime(data, "cpu", 1).batchable, "the names of its sides say nothing"
    assert not open_graph(data, "cpu", 1, 16)[0].batchable


@pytest.mark.parametrize(
    "data",
    [
        relu(("n", 3)),
        relu(("n", "h", "w")),
        one_to_one(helper.make_node("Softmax", ["x"], ["y"], axis=1)),
        one_to_one(helper.make_node("Log", ["x"], ["y"])),
        FOREIGN["pooled"],
        LOOKED_UP,
        OF_SIDE_32,
        unary("Not", TensorProto.BOOL),
        unary("Identity", TensorProto.STRING, ("n",)),
        *map(doubled, (TensorProto.INT64, TensorProto.FLOAT16, TensorProto.DOUBLE)),
    ],
    ids=[
        "relu",
        "free",
        "softmax",
        "not-numbers",
        "pooled",
        "table",
        "side-of-32",
        "bool",
        "words",
        "int64",
        "fp16",
        "fp64",
    ],
)
def test_rows_that_stand_alone_are_joined(data: bytes) -> None:
    assert open_graph(data, "cpu", 1, 16)[0].batchable


def test_what_takes_no_made_up_rows_is_not_joined() -> None:
    outside = one_to_one(
        constant("table", np.zeros(0, np.float32)), helper.make_node("Gather", ["table", "x"], ["y"]), kind=INT64
    )
    assert not rows_stand_alone(Runtime(outside, "cpu", 1))


@pytest.mark.parametrize(
    "data", [SOFTMAX, SUMS, CENTRED, SORTED, SCALED], ids=["softmax", "sums", "centred", "sorted", "scaled"]
)
async def test_no_answer_depends_on_what_others_send_at_the_same_time(data: bytes, tmp_path: Path) -> None:
    write_foreign(tmp_path, odd=data)
    runtime, width = Runtime(data, "cpu", 1), 1 if data is SORTED else 3
    random = np.random.default_rng(1)
    sent = [random.normal(size=(rows, width), scale=rows % 5).astype(np.float32) for rows in range(1, 25)]
    async with running(settings_of(models=tmp_path, device="cpu")) as http:
        answers = await asyncio.gather(
            *(http.post("/v2/models/odd/infer", json={"inputs": [tensor("x", one)]}) for one in sent)
        )
    for one, answer in zip(sent, answers, strict=True):
        assert np.array_equal(outputs_of(answer)["y"], runtime.run({"x": one}, ["y"])[0])
