"""The focal loss as a model of the Open Inference Protocol: `focal_loss`, tensors in, tensors out."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from models.losses import sigmoid_focal, softmax_focal
from models.reductions import FocalTerms
from service.errors import InvalidRequest
from service.infer import InferRequest
from service.runtime import TensorSpec

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


def compute(request: InferRequest) -> tuple[dict[str, NDArray[Any]], dict[str, Callable[[], NDArray[Any]]]]:
    """Loss, log_p and the label's log-odds margin per row; the gradient only when it is asked for.

    Raises:
        InvalidRequest: inputs that do not fit each other.
        InvalidInput: a label or parameter out of its range.
    """
    terms = _terms(request)
    log_p = terms.log_pt if terms.log_pt is not None else np.full(terms.values.shape, np.nan)
    label = terms.margin if terms.margin is not None else np.full(terms.values.shape, np.nan)
    outputs = {name: np.asarray(value, np.float64) for name, value in
               (("loss", terms.values), ("log_p", log_p), ("margin", label))}  # fmt: skip
    return outputs, {"gradient": lambda: np.asarray(terms.gradient, np.float64)}


def _terms(request: InferRequest) -> FocalTerms:
    for name in ("logits", "labels"):
        if name not in request.inputs:
            raise InvalidRequest(f"input {name} is missing")
    unknown = sorted(set(request.inputs) - {"logits", "labels"})
    if unknown:
        raise InvalidRequest(f"the model has no input {unknown[0][:64]}; it has logits, labels")
    logits, labels = request.inputs["logits"], request.inputs["labels"]
    if logits.dtype.kind != "f" or logits.ndim not in (1, 2) or labels.dtype.kind not in "iuf":
        raise InvalidRequest("logits are FP32 or FP64 [N, K], labels INT64 [N], or FP32 [N, K] where they are soft")
    parameters = request.parameters
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
    z = logits.astype(np.float64)
    if mode == "sigmoid":
        return sigmoid_focal(z, labels, **options)
    if parameters.get("alpha_mode") not in (None, "uniform"):
        raise InvalidRequest("alpha_mode should be uniform, which lets a single alpha multiply every class")
    return softmax_focal(z, labels, alpha_mode=parameters.get("alpha_mode"), **options)


def _number(parameters: dict[str, Any], name: str, default: float) -> float:
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
