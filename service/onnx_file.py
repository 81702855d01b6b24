"""What a serialised ONNX graph holds, told without the onnx package and before it is loaded."""

from collections.abc import Iterator

# By message: the fields that lead to what is asked for here (onnx.proto), and what they hold.
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_OPERATOR, _DOMAIN = 4, 7
_GRAPH, _VALUES, _NAME, _TYPE, _TENSOR_TYPE, _SHAPE = 7, (11, 12), 1, 2, 1, 2
"""From a model to the shapes of its inputs and outputs."""
_DEEPEST = 100
_STEADY_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_UNSTEADY = {
    *("Loop", "If", "Range", "Expand", "Tile", "ConstantOfShape", "OneHot", "Pad", "Resize", "Upsample", "MaxUnpool"),
    *("Col2Im", "CenterCropPad", "AffineGrid", "DFT", "STFT", "MelWeightMatrix", "RoiAlign", "NonMaxSuppression"),
    *("HannWindow", "HammingWindow", "BlackmanWindow"),
}
"""Operators that do more or less by the values of their inputs, not by their shapes alone."""
_BY_ROWS = {
    *("Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose"),
    *("Div", "Dropout", "Elu", "Erf", "Exp", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool"),
    *("GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LRN"),
    *("LeakyRelu", "Log", "LogSoftmax", "MatMul", "MaxPool", "Mish", "Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal"),
    *("ReduceMean", "ReduceSum", "Relu", "Reshape", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus", "Softsign"),
    *("LayerNormalization", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
}
"""Operators through which one row reaches another for all values or for none, so that a trial tells."""
_NOTHING_ENDS = {"LSTM", "GRU"}
"""Operators that end the process where a tensor is empty (ONNX Runtime 1.31)."""

Field = tuple[int, int | memoryview]
"""A field of a message: its number and its value."""


def has_external_data(graph: bytes) -> bool:
    """Whether any tensor lies in another file: such a graph names paths on this machine; a model is one file here.

    False for what is no ONNX graph, which the runtime refuses.
    """
    return any(
        message == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value == 1))
        for message, field, value in _all_fields(graph)
    )


class Operators:
    """What a graph is made of, its functions and branches included.

    Args:
        graph: serialised.

    Attributes:
        steady: whether the shapes of the inputs alone say how long a run takes, as far as the operators are known to.
        by_rows: whether a trial with some rows tells whether any row changes with the others.
        empty_ends: whether an empty tensor may end the process.
    """

    def __init__(self, graph: bytes) -> None:
        names: dict[int, set[str]] = {_OPERATOR: set(), _DOMAIN: set()}
        for message, field, value in _all_fields(graph):
            if message == "node" and field in names and isinstance(value, memoryview):
                names[field].add(bytes(value).decode("utf-8", "replace"))
        known = names[_DOMAIN] <= _STEADY_DOMAINS
        self.steady = known and names[_OPERATOR].isdisjoint(_UNSTEADY)
        self.by_rows = known and names[_OPERATOR] <= _BY_ROWS
        self.empty_ends = not names[_OPERATOR].isdisjoint(_NOTHING_ENDS)


def without_rank(graph: bytes) -> set[str]:
    """Inputs and outputs of which the graph does not even say how many sides they have."""
    found: set[str] = set()
    try:
        for inside in _messages(memoryview(graph), _GRAPH):
            for value in [one for field in _VALUES for one in _messages(inside, field)]:
                tensors = [tensor for kind in _messages(value, _TYPE) for tensor in _messages(kind, _TENSOR_TYPE)]
                if tensors and not any(_messages(tensor, _SHAPE) for tensor in tensors):
                    found |= {bytes(name).decode("utf-8", "replace") for name in _messages(value, _NAME)}
    except (IndexError, ValueError):
        pass  # no ONNX graph, which the runtime refuses
    return found


def _messages(data: memoryview, number: int) -> list[memoryview]:
    """The fields of that number which are messages, or text."""
    return [value for field, value in _fields(data) if field == number and isinstance(value, memoryview)]


def _all_fields(graph: bytes) -> Iterator[tuple[str, int, int | memoryview]]:
    """The fields of every message within, with the kind of message; as far as it is an ONNX graph."""
    try:
        yield from _inside(memoryview(graph), "model", 0)
    except (IndexError, ValueError):
        return


def _inside(data: memoryview, message: str, depth: int) -> Iterator[tuple[str, int, int | memoryview]]:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    for field, value in _fields(data):
        yield message, field, value
        inside = _INSIDE[message].get(field)
        if inside is not None and isinstance(value, memoryview):
            yield from _inside(value, inside, depth + 1)


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a protobuf message: number and value."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: int | memoryview = 0
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                value = data[at : at + size]
                at += size
            case 3 | 4:  # a group, which ONNX has none of and protobuf skips: what it holds is looked at all the same
                pass
            case 5:
                at += 4
            case _:
                raise ValueError("no such wire type")
        yield tag >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("too long a number")
