"""The service's own errors, the one table from error to HTTP status, and the one body that errors have (RFC 9457).

ServiceError
├── RequestError
│   ├── MalformedRequest       400  not parseable
│   ├── BadHeaders             400  no Host
│   ├── HeadersTooLarge        431  more headers than accepted
│   ├── NotOffered             501  a part of the protocol that is not offered
│   ├── NotFound               404  no such model
│   ├── MethodNotAllowed       405  a path that is asked in another way
│   ├── BodyTooLarge           413  over a limit of the service
│   ├── UnsupportedMedia       415  content type or encoding not accepted
│   ├── RequestTimeout         408  the body did not arrive in time
│   └── InvalidRequest         422  parsed, but does not fit
├── Conflict                   409  the same is being done already
├── Overloaded                 429  healthy but full: try again
├── NotReady                   503  starting, draining, or no model
└── InferenceFailed            500  the model's own run failed
"""

from typing import Any

from pydantic_core import to_json

from models.errors import (
    BundleError,
    DeviceUnavailable,
    FocalserveError,
    ImageTooLarge,
    InvalidInput,
    InvalidLabel,
    UndecodableImage,
)

PROBLEM_TYPE = "application/problem+json"
_MOST_ERRORS = 10
_LONGEST_TEXT = 300
_MOST_BYTES = 4096


class ServiceError(FocalserveError):
    """Base of the errors that only a service has."""


class RequestError(ServiceError):
    """A request that cannot be answered, by the caller's doing.

    Attributes:
        errors: where in the request, and what; at most 10 are shown.
    """

    def __init__(self, message: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.errors = errors or []


class MalformedRequest(RequestError):
    """The body cannot be parsed."""


class BadHeaders(RequestError):
    """A header that every request must have is missing."""


class HeadersTooLarge(RequestError):
    """More headers, or longer ones, than are accepted."""


class NotOffered(RequestError):
    """A part of the protocol that is not offered here."""


class NotFound(RequestError):
    """There is no such model or version."""


class MethodNotAllowed(RequestError):
    """The path is there, and has another method.

    Args:
        allowed: the method that it has.
    """

    def __init__(self, allowed: str) -> None:
        super().__init__(f"that path has no such method; it has {allowed}")
        self.allowed = allowed


class BodyTooLarge(RequestError):
    """More bytes, images or rows than one request may hold."""


class UnsupportedMedia(RequestError):
    """A content type or encoding that is not accepted."""


class RequestTimeout(RequestError):
    """The body did not arrive in time."""


class InvalidRequest(RequestError):
    """The body was parsed but does not fit."""


class Conflict(ServiceError):
    """The same is being done already."""


class Overloaded(ServiceError):
    """Healthy but full: the same request may go through later."""


class NotReady(ServiceError):
    """Starting, draining, or without a model."""


class InferenceFailed(ServiceError):
    """The model's own run failed; its text may hold paths and is only logged."""


STATUS: dict[type[Exception], tuple[int, str]] = {
    MalformedRequest: (400, "malformed-request"),
    BadHeaders: (400, "bad-headers"),
    HeadersTooLarge: (431, "headers-too-large"),
    NotOffered: (501, "not-offered"),
    NotFound: (404, "not-found"),
    MethodNotAllowed: (405, "method-not-allowed"),
    RequestTimeout: (408, "request-timeout"),
    Conflict: (409, "conflict"),
    BodyTooLarge: (413, "too-large"),
    ImageTooLarge: (413, "image-too-large"),
    UnsupportedMedia: (415, "unsupported-media-type"),
    InvalidRequest: (422, "invalid-request"),
    UndecodableImage: (422, "undecodable-image"),
    InvalidLabel: (422, "invalid-label"),
    InvalidInput: (422, "invalid-input"),
    Overloaded: (429, "overloaded"),
    InferenceFailed: (500, "inference-failed"),
    NotReady: (503, "not-ready"),
    DeviceUnavailable: (503, "device-unavailable"),
    BundleError: (503, "bundle-refused"),
}
TITLES = {
    400: "The request cannot be parsed",
    401: "A key is needed",
    404: "There is nothing here",
    405: "That method is not allowed here",
    408: "The request took too long to arrive",
    409: "It is being done already",
    413: "The request is too large",
    415: "That content type is not accepted",
    422: "The request does not fit",
    429: "The service is full",
    431: "The request headers are too large",
    500: "The service failed",
    501: "That is not offered here",
    503: "The service is not ready",
}


def status_of(error: Exception) -> tuple[int, str]:
    """HTTP status and short code of an error: the nearest class of its family that the table names."""
    for family in type(error).__mro__:
        if family in STATUS:
            return STATUS[family]
    return 500, "internal-error"


def describe(error: Exception) -> str:
    """What may be said of an error: its own text where it is one of ours, nothing of anybody else's."""
    return (
        str(error)[:_LONGEST_TEXT]
        if isinstance(error, FocalserveError)
        else "an unexpected failure; it has been logged"
    )


def problem(
    status: int, code: str, detail: str, request_id: str, errors: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """The body of an error answer: RFC 9457 with `request_id` and, where known, `errors` with `loc` and `msg`."""
    body: dict[str, Any] = {
        "type": f"urn:focalserve:problem:{code}",
        "title": TITLES.get(status, "The request failed"),
        "status": status,
        "detail": detail[:_LONGEST_TEXT],
        "instance": f"urn:focalserve:request:{request_id}",
        "request_id": request_id,
    }
    if errors:
        body["errors"] = [{key: value[:_LONGEST_TEXT] for key, value in row.items()} for row in errors[:_MOST_ERRORS]]
        while len(to_json(body)) > _MOST_BYTES:
            body["errors"].pop()
    return body


def item_problem(error: Exception) -> dict[str, Any]:
    """The error of one item among others that are answered."""
    status, code = status_of(error)
    return {"type": f"urn:focalserve:problem:{code}", "status": status, "detail": describe(error)}
