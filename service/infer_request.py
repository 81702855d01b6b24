"""What a POST to /v2/models/NAME/infer says, by the Open Inference Protocol v2 with its extensions."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.bodies import check_json_size, parse_long_json
from service.errors import InvalidRequest, MalformedRequest
from service.exchange import Buffer, Call
from service.runtime import TensorSpec
from service.tensors import (
    NUMPY,
    WireTensor,
    from_binary,
    read_head,
)
from service.tensors import (
    from_json as json_tensor,
)

LENGTH_HEADER = b"inference-header-content-length"
_MOST_TENSORS = 1024
_SHORT_HEAD = 4096
_QUICK = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "UINT8": "B"}
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Wanted:
    """One output that a request asks for."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: the caller's, or None.
        inputs: by name.
        parameters: of the request.
        wanted: the outputs asked for; None = all of them.
        binary: whether outputs are binary where nothing else is said.
        as_json: whether the inputs came as JSON, where encoded pictures are base64.
    """

    id: str | None
    inputs: Tensors
    parameters: Mapping[str, Any]
    wanted: Sequence[Wanted] | None
    binary: bool
    as_json: bool = False


class _Sent(NamedTuple):
    """An input as the JSON says it: its head, and either its data or how many bytes of them follow the JSON."""

    head: WireTensor
    data: Any
    size: int | None


class _Head(NamedTuple):
    """The JSON of a request; as in `InferRequest`. Requests share it: nothing in it is changed."""

    id: str | None
    sent: Sequence[_Sent]
    parameters: Mapping[str, Any]
    wanted: Sequence[Wanted] | None
    binary: bool


def read_request(call: Call, body: Buffer, specs: Sequence[TensorSpec], most: int) -> InferRequest:
    """A request's tensors.

    Args:
        call: for its headers.
        body: decompressed.
        specs: the model's inputs.
        most: bytes of JSON.

    Raises:
        BodyTooLarge: more JSON than that.
        MalformedRequest: not JSON, or lengths that do not add up.
        InvalidRequest: a tensor that does not fit; named.
    """
    length = call.header(LENGTH_HEADER)
    if length and not (length.isdecimal() and len(length) < 12 and int(length) <= len(body)):
        raise MalformedRequest("Inference-Header-Content-Length is not the length of a part of the body")
    if length and int(length) == 0:
        return _read_raw(bytes(body), specs)
    end = int(length) if length else len(body)
    text = bytes(body[:end])
    check_json_size(text, end, most)
    head = _known_head(text) if length and end <= _SHORT_HEAD else _read_head(text)
    inputs = _read_inputs(head.sent, memoryview(body)[end:], text)
    return InferRequest(head.id, inputs, head.parameters, head.wanted, head.binary, not length)


def _read_head(text: bytes) -> "_Head":
    """All that the JSON of a request says."""
    document = parse_long_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise InvalidRequest("inputs: should be a list of tensors")
    if len(document["inputs"]) > _MOST_TENSORS:
        raise InvalidRequest(f"inputs: more than {_MOST_TENSORS} tensors")
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest("id: should be text")
    parameters = _parameters(document, "parameters")
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InvalidRequest("parameters: binary_data_output should be true or false")
    sent = _read_sent(document["inputs"])
    return _Head(name, sent, parameters, _read_wanted(document.get("outputs"), binary), binary)


# A client that sends binary tensors mostly says the same of each.
_known_head = lru_cache(maxsize=256)(_read_head)


def _read_raw(body: bytes, specs: Sequence[TensorSpec]) -> InferRequest:
    if len(specs) != 1:
        raise InvalidRequest("a raw body is for models with exactly one input")
    spec = specs[0]
    if spec.datatype == "BYTES":
        element = np.empty([1] * max(1, len(spec.shape)), np.object_)
        element.flat[0] = body
        return InferRequest(None, {spec.name: element}, {}, None, True)
    shape = [1, *spec.shape[1:]] if spec.shape[:1] == (-1,) else list(spec.shape)
    free = [i for i, side in enumerate(shape) if side == -1]
    size = NUMPY[spec.datatype].itemsize
    rest = size * int(np.prod([side for side in shape if side != -1], dtype=np.int64))
    if len(free) > 1 or not rest or (free and len(body) % rest):
        raise InvalidRequest("a raw body does not fit: the input has more than one variable side, or other bytes")
    for i in free:
        shape[i] = len(body) // rest
    tensor = from_binary(WireTensor(spec.name, spec.datatype, tuple(shape)), memoryview(body))
    return InferRequest(None, {spec.name: tensor}, {}, None, True)


def _read_sent(documents: list[Any]) -> list[_Sent]:
    found: dict[str, _Sent] = {}
    for i, document in enumerate(documents):
        head = read_head(document, f"inputs.{i}")
        if head.name in found:
            raise InvalidRequest(f"input {head.name} is given twice")
        size = _parameters(document, f"inputs.{i}.parameters").get("binary_data_size")
        if size is not None and type(size) is not int:
            raise InvalidRequest(f"{head.name}: binary_data_size is not the length of a part of the body")
        if size is not None and "data" in document:
            raise InvalidRequest(f"{head.name}: has both data and binary_data_size")
        found[head.name] = _Sent(head, document.get("data"), size)
    return list(found.values())


def _read_inputs(sent: Sequence[_Sent], binary: memoryview, text: bytes) -> Tensors:
    found: Tensors = {}
    at = 0
    for head, data, size in sent:
        if size is None:
            found[head.name] = _quick(head, data, text)
            continue
        if not 0 <= size <= len(binary) - at:
            raise InvalidRequest(f"{head.name}: binary_data_size is not the length of a part of the body")
        found[head.name] = from_binary(head, binary[at : at + size])
        at += size
    if at != len(binary):
        raise InvalidRequest(f"{len(binary) - at} bytes follow the last tensor")
    return found


def _quick(head: WireTensor, data: Any, text: bytes) -> NDArray[Any]:
    """A flat list of plain numbers, no truth values, through `array`; all else the careful way."""
    code = _QUICK.get(head.datatype)
    if code is None or type(data) is not list or len(data) != head.count or not data or type(data[0]) is list:
        return json_tensor(head, data)
    try:
        values = np.frombuffer(array(code, data), NUMPY[head.datatype])
    except (TypeError, OverflowError):
        return json_tensor(head, data)
    if not _finite(values) or (_may_be_words(values) and (b"true" in text or b"false" in text)):
        return json_tensor(head, data)
    return values.reshape(head.shape)


def _may_be_words(values: NDArray[Any]) -> bool:
    """Whether there are ones or zeros, as which `array` takes Python's truth values: the text is searched only then."""
    return bool(((values == 0) | (values == 1)).any())


def _finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _read_wanted(documents: Any, binary: bool) -> list[Wanted] | None:
    if documents is None or documents == []:
        return None
    if not isinstance(documents, list) or len(documents) > _MOST_TENSORS:
        raise InvalidRequest(f"outputs: should be a list of at most {_MOST_TENSORS}")
    found: list[Wanted] = []
    for i, document in enumerate(documents):
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise InvalidRequest(f"outputs.{i}: should be an object with a name")
        parameters = _parameters(document, f"outputs.{i}.parameters")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidRequest(f"outputs.{i}: classification should be a whole number")
        as_bytes = parameters.get("binary_data", binary)
        if not isinstance(as_bytes, bool):
            raise InvalidRequest(f"outputs.{i}: binary_data should be true or false")
        if any(one.name == document["name"] for one in found):
            raise InvalidRequest(f"output {document['name'][:64]} is asked for twice")
        found.append(Wanted(document["name"], as_bytes, classes))
    return found


def _parameters(document: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}: should be an object")
    return parameters
