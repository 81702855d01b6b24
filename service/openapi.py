"""What OpenAPI cannot read off the handlers: bodies in three forms, and the one error body."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.schemas import LossInput, LossRequest, PredictRequest

_REF = "#/components/schemas/{model}"


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, str]] | None = None


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}},
    }


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("Not parseable: malformed JSON, NaN, duplicate keys, broken multipart."),
    404: _problem("No such model."),
    408: _problem("The body did not arrive in time."),
    413: _problem("More bytes, images, rows or pixels than allowed."),
    415: _problem("Content type or encoding not accepted."),
    422: _problem("Parsed, but does not fit; `errors` says where."),
    429: _problem("Healthy but full; `Retry-After` says when to come back."),
    503: _problem("Starting, stopping, or without a model."),
}

NOT_ENDED: dict[int | str, dict[str, Any]] = {409: _problem("The audit has not ended yet.")}

OIP_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": what,
        "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
    }
    for status, what in ((400, "Bad input."), (404, "No such model or version."), (503, "Not ready."))
}


def _binary(types: tuple[str, ...]) -> dict[str, Any]:
    return {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}


def _body(model: str, form: dict[str, Any]) -> dict[str, Any]:
    images = _binary(("image/jpeg", "image/png", "image/webp", "image/bmp"))
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": _REF.format(model=model)}},
                "multipart/form-data": {"schema": {"type": "object", "properties": form}},
                **images,
            },
        }
    }


_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": f"{description} Not with JSON.",
    }


PREDICT_BODY = _body("PredictRequest", {"file": _FILES}) | {
    "parameters": [
        _query("model", {"type": "string"}, "Which model."),
        _query("top_k", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}, "How many classes."),
        *(
            _query(name, {"type": "number", "minimum": 0, "maximum": 1}, f"Of a detector: {what}.")
            for name, what in (("score_threshold", "least score"), ("iou_threshold", "overlap that suppresses"))
        ),
        _query("max_detections", {"type": "integer", "minimum": 1, "maximum": 5000}, "Of a detector: at most."),
    ]
}
LOSS_BODY = _body("LossRequest", {"file": _FILES, "label": {"type": "array", "items": {"type": "string"}}}) | {
    "parameters": [
        _query("label", {"type": "string"}, "The given label of an image sent as it is: a name or an index."),
        _query("model", {"type": "string"}, "Which model."),
        _query("gamma", {"type": "number", "minimum": 0}, "Focusing parameter."),
    ]
}


_ITEM = LossInput.__name__
AUDIT_BODY: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
        for name, schema, description in (
            ("model", {"type": "string"}, "Which model."),
            ("name", {"type": "string", "maxLength": 256}, "Your own name for the audit."),
            (
                "activation",
                {"type": "string", "enum": ["softmax", "sigmoid"]},
                "For rows of another model: how they become probabilities. Not with a detector.",
            ),
        )
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"$ref": _REF.format(model=_ITEM)},
                "examples": {
                    "labels": {
                        "summary": "labels of a classifier",
                        "value": '{"id": "a", "image": "iVBORw0KGgo...", "label": "Bag"}\n'
                        '{"id": "b", "logits": [2.5, -1.0, 0.3], "label": 0}\n',
                    },
                    "boxes": {
                        "summary": "boxes of a detector",
                        "value": '{"id": "a", "image": "iVBORw0KGgo...", '
                        '"boxes": [{"box": [12, 30, 58, 96], "label": "Bag", "id": 7}]}\n'
                        '{"id": "b", "image": "iVBORw0KGgo...", "boxes": []}\n',
                    },
                },
            }
        },
    },
}
AUDIT_RESULTS: dict[str, Any] = {
    "description": "Rows, the worst label first.",
    "content": {
        "application/x-ndjson": {"schema": {"$ref": _REF.format(model="AuditRow")}},
        "text/csv": {"schema": {"type": "string"}},
    },
}


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                },
                "example": {
                    "parameters": {"gamma": 2.0, "mode": "softmax"},
                    "inputs": [
                        {"name": "logits", "shape": [1, 3], "datatype": "FP32", "data": [2.5, -1.0, 0.3]},
                        {"name": "labels", "shape": [1], "datatype": "INT64", "data": [0]},
                    ],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def add_request_schemas(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the requests' and the problem's models among its components."""
    _, definitions = models_json_schema(
        [(PredictRequest, "validation"), (LossRequest, "validation"), (Problem, "serialization")],
        ref_template=_REF,
    )
    schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return schema
