"""Requests and answers of the Open Inference Protocol v2, written by hand, so that tests need no client's help."""

import json
import struct
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from service.tensors import NUMPY

NAMES = {np.dtype(kind): name for name, kind in NUMPY.items()}
LENGTH = "Inference-Header-Content-Length"
Json = dict[str, Any]


def tensor(name: str, array: NDArray[Any], **more: Any) -> Json:
    """A tensor in JSON."""
    data = [one.decode() if isinstance(one, bytes) else one for one in array.ravel().tolist()]
    return {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape), "data": data, **more}


def raw_bytes(array: NDArray[Any]) -> bytes:
    """A tensor in binary."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(one)) + one for one in array.ravel())


def binary(document: Json, **arrays: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
    """A body with binary tensors and its headers; the document's own inputs come after them."""
    heads = [
        {
            "name": name,
            "datatype": NAMES[array.dtype],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(raw_bytes(array))},
        }
        for name, array in arrays.items()
    ]
    text = json.dumps({**document, "inputs": [*heads, *document.get("inputs", [])]}).encode()
    return text + b"".join(raw_bytes(array) for array in arrays.values()), {LENGTH: str(len(text))}


def outputs_of(answer: httpx.Response) -> dict[str, NDArray[Any]]:
    """The tensors of an answer, JSON and binary."""
    assert answer.status_code == 200, answer.text
    end = int(answer.headers.get(LENGTH, len(answer.content)))
    head, rest = json.loads(answer.content[:end]), answer.content[end:]
    found: dict[str, NDArray[Any]] = {}
    for one in head["outputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = [text.encode() for text in one["data"]] if one["datatype"] == "BYTES" else one["data"]
            array = np.array(data, NUMPY[one["datatype"]])
        elif one["datatype"] == "BYTES":
            array = np.array(_elements(rest[:size]), np.object_)
        else:
            array = np.frombuffer(rest[:size], NUMPY[one["datatype"]])
        rest = rest[size or 0 :]
        found[one["name"]] = array.reshape(one["shape"])
    assert rest == b""
    return found


def error_of(answer: httpx.Response, status: int = 400) -> str:
    """The words of an error, after checking its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.content) <= 4096
    body = answer.json()
    assert isinstance(body["error"], str) and body["error"] and body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    for word in ("Traceback", "site-packages", ".py", "/tmp", "/home", "onnxruntime"):
        assert word not in answer.text
    return str(body["error"])


def _elements(data: bytes) -> list[bytes]:
    found = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found
