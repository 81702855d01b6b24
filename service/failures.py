"""The one answer that errors have, whoever raises them and wherever."""

from pydantic_core import to_json

from service.errors import PROBLEM_TYPE, MethodNotAllowed, RequestError, describe, problem, status_of
from service.exchange import JSON, Header, Reply

_RETRY_AFTER = {429: b"1", 503: b"2"}
CLOSE: Header = (b"connection", b"close")
"""The header of an answer after which the connection ends."""


def failure_reply(error: Exception, request_id: str, is_oip: bool) -> Reply:
    """The one error answer: RFC 9457; under /v2 the same as application/json with the string `error` beside it."""
    status, code = status_of(error)
    headers = [(b"retry-after", _RETRY_AFTER[status])] if status in _RETRY_AFTER else []
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    if status in (408, 413):
        headers.append(CLOSE)  # the rest of the body is not read
    if is_oip and status in (413, 415, 422):
        status = 400
    body = problem(status, code, describe(error), request_id, error.errors if isinstance(error, RequestError) else None)
    if is_oip:
        return Reply(to_json({"error": body["detail"], **body}), JSON, status, headers)
    return Reply(to_json(body), PROBLEM_TYPE.encode(), status, headers)
