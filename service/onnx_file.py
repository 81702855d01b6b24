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
_DEEPEST = 100
_STEADY_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_UNSTEADY = {
    *("Loop", "If", "Range", "Expand", "Tile", "ConstantOfShape", "OneHot", "Pad", "Resize", "Upsample", "MaxUnpool"),
    *("Col2Im", "CenterCropPad", "AffineGrid", "DFT", "STFT", "MelWeightMatrix", "RoiAlign", "NonMaxSuppression"),
    *("HannWindow", "HammingWindow", "BlackmanWindow"),
}
"""Operators that do more or less by the values of their inputs, not by their shapes alone."""

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


def takes_as_long_each_time(graph: bytes) -> bool:
    """Whether how long a run takes hangs on the shapes of its inputs alone, as far as the operators are known to."""
    for message, field, value in _all_fields(graph):
        if message == "node" and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace") if field in (_OPERATOR, _DOMAIN) else ""
            if (field == _OPERATOR and name in _UNSTEADY) or (field == _DOMAIN and name not in _STEADY_DOMAINS):
                return False
    return True


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
