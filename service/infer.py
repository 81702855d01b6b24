"""Tensors of /v2/models/NAME/infer: whether they are the model's, and the answer that holds its outputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.exchange import Reply
from service.infer_request import LENGTH_HEADER, InferRequest, Tensors, Wanted
from service.runtime import TensorSpec
from service.tensors import (
    NUMPY,
    datatype_of,
    to_binary,
    to_json_data,
    top_classes,
)

BINARY = b"application/octet-stream"


def check_inputs(tensors: Tensors, specs: Sequence[TensorSpec], optional: Sequence[TensorSpec] = ()) -> None:
    """Whether the tensors are those that a model takes.

    Args:
        tensors: that were sent.
        specs: inputs that the model needs.
        optional: others that it takes.

    Raises:
        InvalidRequest: one is missing, unknown, or of another datatype or shape; named.
    """
    found = {spec.name: spec for spec in (*specs, *optional)}
    unknown = sorted(set(tensors) - set(found))
    if unknown:
        raise InvalidRequest(f"the model has no input {unknown[0][:64]}; it has {', '.join(found)}")
    for spec in specs:
        if spec.name not in tensors:
            raise InvalidRequest(f"input {spec.name} is missing")
    for name, tensor in tensors.items():
        spec = found[name]
        if tensor.dtype != NUMPY[spec.datatype]:
            raise InvalidRequest(f"input {name}: the model takes {spec.datatype}, not {datatype_of(tensor)}")
        if not spec.takes(tensor.shape):
            raise InvalidRequest(f"input {name}: the model takes shape {list(spec.shape)}, not {list(tensor.shape)}")


def write_reply(
    request: InferRequest,
    model: str,
    version: str,
    outputs: Mapping[str, NDArray[Any]],
    labels: Mapping[str, Sequence[str]],
    on_demand: Mapping[str, Callable[[], NDArray[Any]]] | None = None,
) -> Reply:
    """The answer with the outputs asked for.

    Args:
        request: what was asked.
        model: its name.
        version: its version.
        outputs: all outputs, by name.
        labels: class names of an output, for the classification extension.
        on_demand: outputs that are computed only when they are asked for by name.

    Raises:
        InvalidRequest: an output is asked for that there is not.
    """
    wanted = request.wanted or [Wanted(name, request.binary, 0) for name in outputs]
    heads: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for one in wanted:
        if one.name in outputs:
            tensor = outputs[one.name]
        elif on_demand and one.name in on_demand:
            tensor = on_demand[one.name]()
        else:
            raise InvalidRequest(f"the model has no output {one.name[:64]}; it has {', '.join(outputs)}")
        if one.classes:
            tensor = top_classes(tensor, one.classes, labels.get(one.name))
        head: dict[str, Any] = {"name": one.name, "datatype": datatype_of(tensor), "shape": list(tensor.shape)}
        if one.binary:
            part = to_binary(tensor)
            head["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        elif head["datatype"] == "FP16":
            raise InvalidRequest(f"output {one.name}: FP16 has no JSON form; ask for it as binary")
        else:
            head["data"] = to_json_data(tensor)
        heads.append(head)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": heads}
    if request.id is not None:
        document["id"] = request.id
    text = orjson.dumps(document)
    if not parts:
        return Reply(text)
    return Reply(b"".join([text, *parts]), BINARY, headers=[(LENGTH_HEADER, b"%d" % len(text))])


def pictures_of(tensor: NDArray[Any], came_as_json: bool) -> list[bytes | str]:
    """The encoded pictures of a BYTES tensor: base64 text where they came as JSON."""
    return [one.decode("utf-8") if came_as_json else one for one in tensor.ravel()]
