"""The focal loss as a model of the Open Inference Protocol: `focal_loss`, tensors in, tensors out."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from models.errors import InvalidInput
from models.losses import sigmoid_focal, softmax_focal
from models.reductions import FocalTerms
from service.errors import InvalidRequest
from service.infer_request import InferRequest, Tensors
from service.runtime import TensorSpec
from service.settings import usable_cores

_NUMBERS = 400_000
"""Logits at a time, and what the cores share: less, and their threads wait for the interpreter more than they work."""
NAME = "focal_loss"
VERSION = "1"
INPUTS = (TensorSpec("logits", "FP32", (-1, -1)), TensorSpec("labels", "INT64", (-1,)))
OUTPUTS = (
    TensorSpec("loss", "FP64", (-1,)),
    TensorSpec("log_p", "FP64", (-1,)),
    TensorSpec("margin", "FP64", (-1,)),
    TensorSpec("gradient", "FP64", (-1, -1)),
)
PARAMETERS = (
    "gamma (2), alpha (number, or JSON list as text), alpha_mode (uniform), mode (softmax or sigmoid), "
    "label_smoothing, ignore_index"
)


def compute(request: InferRequest) -> tuple[Tensors, dict[str, Callable[[], NDArray[Any]]]]:
    """Loss, log_p and the label's log-odds margin per row, those that are asked for; the gradient only by its name.

    Raises:
        InvalidRequest: inputs that do not fit each other.
        InvalidInput: a label or parameter out of its range.
    """
    logits, labels = _inputs(request)
    rule = _rule(request.parameters)
    asked = {one.name for one in request.wanted} if request.wanted is not None else set(_FACTS)
    unknown = sorted(asked - {spec.name for spec in OUTPUTS})
    if unknown:
        raise InvalidRequest(
            f"the model has no output {unknown[0][:64]}; it has {', '.join(spec.name for spec in OUTPUTS)}"
        )
    names = [name for name in _FACTS if name in asked] or ["loss"]

    def facts(part: slice) -> list[NDArray[Any]]:
        terms = rule(logits[part].astype(np.float64), labels[part])
        return [_FACTS[name](terms) for name in names]

    rows = max(1, _NUMBERS // max(1, logits[0].size)) if len(logits) else 1
    parts = [slice(at, at + rows) for at in range(0, len(logits), rows)]
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            columns = list(pool.map(facts, parts)) if len(parts) > 1 else [facts(slice(None))]
    except InvalidInput:
        rule(logits.astype(np.float64), labels)  # says where in the whole
        raise
    outputs = {name: np.concatenate(column) for name, column in zip(names, zip(*columns, strict=True), strict=True)}
    return outputs, {"gradient": lambda: np.asarray(rule(logits.astype(np.float64), labels).gradient, np.float64)}


def _inputs(request: InferRequest) -> tuple[NDArray[Any], NDArray[Any]]:
    for name in ("logits", "labels"):
        if name not in request.inputs:
            raise InvalidRequest(f"input {name} is missing")
    unknown = sorted(set(request.inputs) - {"logits", "labels"})
    if unknown:
        raise InvalidRequest(f"the model has no input {unknown[0][:64]}; it has logits, labels")
    logits, labels = request.inputs["logits"], request.inputs["labels"]
    if logits.dtype.kind != "f" or logits.ndim not in (1, 2) or labels.dtype.kind not in "iuf" or not labels.ndim:
        raise InvalidRequest("logits are FP32 or FP64 [N, K], labels INT64 [N], or FP32 [N, K] where they are soft")
    if len(logits) != len(labels):
        raise InvalidRequest(f"{len(logits)} rows of logits need as many labels, {len(labels)} were given")
    return logits, labels


def _rule(parameters: Mapping[str, Any]) -> Callable[[NDArray[Any], NDArray[Any]], FocalTerms]:
    """The loss that the parameters ask for, of float64 logits and labels."""
    mode = parameters.get("mode", "softmax")
    if mode not in ("softmax", "sigmoid"):
        raise InvalidRequest("mode should be softmax or sigmoid")
    options: dict[str, Any] = {
        "gamma": _number(parameters, "gamma", 2.0),
        "alpha": _alpha(parameters.get("alpha")),
        "label_smoothing": _number(parameters, "label_smoothing", 0.0),
        "ignore_index": parameters.get("ignore_index"),
    }
    if options["ignore_index"] is not None and type(options["ignore_index"]) is not int:
        raise InvalidRequest("ignore_index should be a whole number")
    if mode == "sigmoid":
        return partial(sigmoid_focal, **options)
    if parameters.get("alpha_mode") not in (None, "uniform"):
        raise InvalidRequest("alpha_mode should be uniform, which lets a single alpha multiply every class")
    return partial(softmax_focal, alpha_mode=parameters.get("alpha_mode"), **options)


def _known(terms: FocalTerms, values: NDArray[Any] | None) -> NDArray[Any]:
    """What has no meaning for soft labels is not a number."""
    return np.full(terms.values.shape, np.nan) if values is None else np.asarray(values, np.float64)


_FACTS: dict[str, Callable[[FocalTerms], NDArray[Any]]] = {
    "loss": lambda terms: np.asarray(terms.values, np.float64),
    "log_p": lambda terms: _known(terms, terms.log_pt),
    "margin": lambda terms: _known(terms, terms.margin),
}


def _number(parameters: Mapping[str, Any], name: str, default: float) -> float:
    value = parameters.get(name, default)
    if type(value) not in (int, float):
        raise InvalidRequest(f"{name} should be a number")
    return float(value)


def _alpha(value: Any) -> Any:
    """None, a number, or a list as JSON text: the protocol's parameters hold no lists."""
    if isinstance(value, str):
        try:
            value = from_json(value)
        except ValueError:
            raise InvalidRequest("alpha should be a number, or a JSON list of numbers as text") from None
    if value is None or type(value) in (int, float):
        return value
    if isinstance(value, list) and {type(one) for one in value} <= {int, float}:
        return [float(one) for one in value]
    raise InvalidRequest("alpha should be a number, or a JSON list of numbers as text")
