"""Whether a serialised ONNX graph keeps tensors in other files, told without the onnx package and before it is loaded.

Such a graph names paths on this machine; a model is one file here.
"""

from collections.abc import Iterator

# By message: the fields that lead to tensors (onnx.proto), and what they hold.
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14
_DEEPEST = 100


def has_external_data(graph: bytes) -> bool:
    """Whether any tensor lies in another file; False for what is no ONNX graph, which the runtime refuses."""
    try:
        return _search(memoryview(graph), "model", 0)
    except (IndexError, ValueError):
        return False


def _search(data: memoryview, message: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    for field, value in _fields(data):
        if message == "tensor":
            if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value == 1):
                return True
            continue
        inside = _INSIDE[message].get(field)
        if inside is not None and isinstance(value, memoryview) and _search(value, inside, depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
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
