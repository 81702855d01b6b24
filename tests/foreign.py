"""ONNX graphs that were not exported here, of every form that the service should serve or refuse with words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

Side = int | str | None
Tensor = tuple[str, int, Sequence[Side]]


def graph(
    nodes: Sequence[NodeProto], inputs: Sequence[Tensor], outputs: Sequence[Any], opset: int = 20, ir: int = 10
) -> bytes:
    """A serialised graph; an output is a tensor or a ready ValueInfo."""
    sides = [
        [one if not isinstance(one, tuple) else helper.make_tensor_value_info(*one) for one in side]
        for side in (inputs, outputs)
    ]
    found = helper.make_graph(list(nodes), "foreign", sides[0], sides[1])
    model = helper.make_model(found, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return bytes(model.SerializeToString())


def relu(shape: Sequence[Side], opset: int = 20, out: Sequence[Side] | None = None, ir: int = 10) -> bytes:
    """y = max(x, 0), FP32."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return graph(
        [node], [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape if out is None else out)], opset, ir
    )


def unary(name: str, kind: int, shape: Sequence[Side] = ("n", 3)) -> bytes:
    """y = name(x), of one type."""
    return graph([helper.make_node(name, ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])


def doubled(kind: int, shape: Sequence[Side] = ("n", 3)) -> bytes:
    """y = x + x, of one type."""
    return graph([helper.make_node("Add", ["x", "x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])


def pooled() -> bytes:
    """FP32 NCHW to the mean of each channel."""
    node = helper.make_node("GlobalAveragePool", ["pixels"], ["means"])
    inputs = [("pixels", TensorProto.FLOAT, ("batch", 3, 4, 4))]
    return graph([node], inputs, [("means", TensorProto.FLOAT, ("batch", 3, 1, 1))])


def several() -> bytes:
    """Two inputs, two outputs of the same rows, and one of none: a + b, -a, and the shape of a."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Neg", ["a"], ["minus"]),
        helper.make_node("Shape", ["a"], ["shape"]),
    ]
    inputs = [(name, TensorProto.FLOAT, ("n", 2)) for name in ("a", "b")]
    outputs = [(name, TensorProto.FLOAT, ("n", 2)) for name in ("sum", "minus")]
    return graph(nodes, inputs, [*outputs, ("shape", TensorProto.INT64, (2,))])


def selected() -> bytes:
    """As many rows out as there are numbers other than 0 in, though both sides are called n."""
    nodes = [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Transpose", ["at"], ["y"], perm=[1, 0])]
    return graph(nodes, [("x", TensorProto.FLOAT, ("n",))], [("y", TensorProto.INT64, ("n", 1))])


def looping() -> bytes:
    """As many products of matrices as a number says: what takes no time with zeros and any with others."""
    sides = ("side", "side2")
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["v", "w"], ["product"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, sides),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, sides),
        ],
    )
    constants = {"w": np.eye(64, dtype=np.float32), "yes": np.array(True)}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in constants.items()
    ]
    loop = helper.make_node("Loop", ["count", "yes", "w"], ["y"], body=body)
    return graph([*nodes, loop], [("count", TensorProto.INT64, (1,))], [("y", TensorProto.FLOAT, (64, 64))])


def sequence() -> bytes:
    """An output that is no tensor."""
    out = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return graph([helper.make_node("SplitToSequence", ["x"], ["y"])], [("x", TensorProto.FLOAT, ("n", 2))], [out])


FOREIGN = {
    "pooled": pooled(),
    "int64": doubled(TensorProto.INT64),
    "fp16": doubled(TensorProto.FLOAT16),
    "fp64": doubled(TensorProto.DOUBLE),
    "uint8": unary("Identity", TensorProto.UINT8),
    "bool": unary("Not", TensorProto.BOOL),
    "words": unary("Identity", TensorProto.STRING, ("n",)),
    "several": several(),
    "opset9": relu(("n", 3), 9, ir=4),
    "opset11": relu(("n", 3), 11, ir=6),
    "fixed": relu((2, 3)),
    "free": relu(("n", "h", "w")),
    "unnamed": relu((None, 3)),
    "selected": selected(),
    "scalar": relu(()),
}


def write_foreign(root: Path, **graphs: bytes) -> Path:
    """A folder of NAME.onnx files."""
    root.mkdir(parents=True, exist_ok=True)
    for name, data in graphs.items():
        (root / f"{name}.onnx").write_bytes(data)
    return root
