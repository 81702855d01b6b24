"""Tensors of the Open Inference Protocol v2, between bytes or JSON and numpy. Sizes are checked before use."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.runtime import DATATYPES

NUMPY: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in DATATYPES.values()}
_NAMES = {kind: name for name, kind in NUMPY.items()}
_JSON_KINDS: dict[str, set[type[Any]]] = {
    **{f"{sign}INT{bits}": {int} for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "BOOL": {bool},
    "BYTES": {str},
}
_MOST_ELEMENTS = 2**31
_MOST_SIDES = 32


@dataclass(frozen=True)
class WireTensor:
    """A tensor's head in a request: name, datatype, shape; its numbers follow in JSON or in binary."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many elements the shape says."""
        return math.prod(self.shape)


def read_head(document: Any, where: str) -> WireTensor:
    """The head of a tensor in a request.

    Raises:
        InvalidRequest: a part is missing or wrong; says which.
    """
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise InvalidRequest(f"{where}: should be an object with a name")
    name, datatype, shape = document["name"][:64], document.get("datatype"), document.get("shape")
    if not isinstance(datatype, str) or datatype not in NUMPY:
        raise InvalidRequest(f"{where} ({name}): datatype should be one of {', '.join(NUMPY)}")
    if not isinstance(shape, list) or not all(type(side) is int and 0 <= side <= _MOST_ELEMENTS for side in shape):
        raise InvalidRequest(f"{where} ({name}): shape should be a list of whole numbers from 0 on")
    if len(shape) > _MOST_SIDES:
        raise InvalidRequest(f"{where} ({name}): the shape has more than {_MOST_SIDES} sides")
    head = WireTensor(name, datatype, tuple(shape))
    if math.prod(max(side, 1) for side in shape) > _MOST_ELEMENTS:
        raise InvalidRequest(f"{where} ({name}): the shape has more than {_MOST_ELEMENTS} elements")
    return head


def from_json(head: WireTensor, data: Any) -> NDArray[Any]:
    """A tensor from the `data` of a JSON request: flat or nested, row-major.

    Raises:
        InvalidRequest: the wrong number or kind of elements.
    """
    if head.datatype == "FP16":
        raise InvalidRequest(f"{head.name}: FP16 has no JSON form; send it as binary")
    if not isinstance(data, list):
        raise InvalidRequest(f"{head.name}: data should be a list")
    flat = _flatten(head, data)
    if len(flat) != head.count:
        raise InvalidRequest(f"{head.name}: shape says {head.count} elements, data has {len(flat)}")
    if not set(map(type, flat)) <= _JSON_KINDS.get(head.datatype, {int, float}):
        raise InvalidRequest(f"{head.name}: data holds something that is no {head.datatype}")
    if head.datatype == "BYTES":
        return np.array([text.encode() for text in flat] or [], np.object_).reshape(head.shape)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, NUMPY[head.datatype])
    except OverflowError:
        raise InvalidRequest(f"{head.name}: a number does not fit {head.datatype}") from None
    if head.datatype in ("FP32", "FP64") and not np.isfinite(array).all():
        raise InvalidRequest(f"{head.name}: a number does not fit {head.datatype}")
    return array.reshape(head.shape)


def from_binary(head: WireTensor, data: memoryview) -> NDArray[Any]:
    """A tensor from its binary form: little-endian, row-major; BYTES as length-prefixed elements.

    Raises:
        InvalidRequest: the wrong number of bytes.
    """
    if head.datatype == "BYTES":
        return _read_bytes(head, data)
    kind = NUMPY[head.datatype]
    if len(data) != head.count * kind.itemsize:
        raise InvalidRequest(
            f"{head.name}: {head.datatype} of that shape has {head.count * kind.itemsize} bytes, {len(data)} were sent"
        )
    if head.datatype == "BOOL" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise InvalidRequest(f"{head.name}: a byte of a BOOL is neither 0 nor 1")
    return np.frombuffer(data, kind).reshape(head.shape)


def to_json_data(array: NDArray[Any]) -> list[Any]:
    """A tensor as flat JSON data; BYTES as text where it is UTF-8."""
    if array.dtype == np.object_:
        return [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in array.ravel()]
    return array.ravel().tolist()


def to_binary(array: NDArray[Any]) -> bytes:
    """A tensor in binary form."""
    if array.dtype != np.object_:
        return np.ascontiguousarray(array).tobytes()
    parts = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel()]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's type."""
    name = _NAMES.get(array.dtype)
    if name is None:
        raise InvalidRequest("an output has a type that the protocol does not know")
    return name


def as_text(array: NDArray[Any]) -> NDArray[Any]:
    """Elements of BYTES as text, as ONNX Runtime wants its strings.

    Raises:
        InvalidRequest: an element is not UTF-8.
    """
    try:
        return np.array([one.decode() for one in array.ravel()], np.object_).reshape(array.shape)
    except UnicodeDecodeError:
        raise InvalidRequest("a BYTES element is not UTF-8 text") from None


def top_classes(rows: NDArray[Any], count: int, labels: Sequence[str] | None) -> NDArray[np.object_]:
    """The classification extension: per row the `count` largest as `value:index[:label]`, BYTES (N, count)."""
    if rows.dtype == np.object_ or rows.ndim == 0:
        raise InvalidRequest("classification is for outputs of numbers with at least one side")
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    count = min(count, flat.shape[1])
    # Not by negation, which unsigned numbers do not have; equal ones stay in the order of their index.
    order = flat.shape[1] - 1 - np.argsort(flat[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    form = "f" if rows.dtype.kind == "f" else "d"
    named = labels if labels is not None and len(labels) == flat.shape[1] else None
    found = np.empty((len(rows), count), np.object_)
    for n, which in enumerate(order):
        for m, k in enumerate(which):
            text = f"{flat[n, k]:{form}}:{k}" + (f":{named[k]}" if named else "")
            found[n, m] = text.encode()
    return found


def _flatten(head: WireTensor, data: list[Any]) -> list[Any]:
    nested = [len(data)]
    while data and type(data[0]) is list:
        if any(type(part) is not list or len(part) != len(data[0]) for part in data):
            raise InvalidRequest(f"{head.name}: data is nested unevenly")
        nested.append(len(data[0]))
        data = [one for part in data for one in part]
    if len(nested) > 1 and len(nested) == len(head.shape) and tuple(nested) != head.shape:
        raise InvalidRequest(f"{head.name}: shape says {list(head.shape)}, data is nested as {nested}")
    return data


def _read_bytes(head: WireTensor, data: memoryview) -> NDArray[Any]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        if len(elements) == head.count or at + 4 > len(data):
            raise InvalidRequest(f"{head.name}: the BYTES elements do not fit the shape")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > len(data) - at:
            raise InvalidRequest(f"{head.name}: a BYTES element says it is longer than what follows")
        elements.append(bytes(data[at : at + length]))
        at += length
    if len(elements) != head.count:
        raise InvalidRequest(f"{head.name}: shape says {head.count} elements, {len(elements)} were sent")
    found = np.empty(head.count, np.object_)
    found[:] = elements
    return found.reshape(head.shape)
