import inspect

import pytest
from pydantic_core import to_json

import models.errors
import service.errors
from models.errors import FocalserveError, InvalidInput, InvalidLabel, UndecodableImage
from service.errors import (
    STATUS,
    TITLES,
    InferenceFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    describe,
    item_problem,
    problem,
    status_of,
)

OURS = [
    kind
    for module in (models.errors, service.errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, FocalserveError)
]


def test_every_error_of_ours_has_a_status_but_the_three_that_are_only_families() -> None:
    without = {kind.__name__ for kind in OURS if status_of(kind("x")) == (500, "internal-error")}
    assert without == {"FocalserveError", "ServiceError", "RequestError"}


def test_every_status_has_a_title_and_every_code_is_used_once() -> None:
    assert {status for status, _ in STATUS.values()} <= set(TITLES)
    codes = [code for _, code in STATUS.values()]
    assert len(set(codes)) == len(codes)


def test_a_subclass_takes_the_status_of_its_nearest_family() -> None:
    class Odd(InvalidLabel):
        pass

    assert status_of(Odd("x")) == (422, "invalid-label")
    assert status_of(InvalidInput("x")) == (422, "invalid-input")
    assert status_of(KeyError("x")) == (500, "internal-error")
    assert status_of(Overloaded("x"))[0] == 429
    assert status_of(NotFound("x"))[0] == 404


@pytest.mark.parametrize("error", [KeyError("/etc/passwd"), OSError(2, "no file", "/secret"), ValueError("token")])
def test_nothing_is_said_of_an_error_that_is_not_ours(error: Exception) -> None:
    assert describe(error) == "an unexpected failure; it has been logged"
    assert item_problem(error) == {
        "type": "urn:focalserve:problem:internal-error",
        "status": 500,
        "detail": "an unexpected failure; it has been logged",
    }


def test_a_problem_has_the_fields_of_rfc_9457_and_the_request_id() -> None:
    body = problem(422, "invalid-request", "no", "abc", [{"loc": "inputs.0", "msg": "bad"}])
    assert body == {
        "type": "urn:focalserve:problem:invalid-request",
        "title": "The request does not fit",
        "status": 422,
        "detail": "no",
        "instance": "urn:focalserve:request:abc",
        "request_id": "abc",
        "errors": [{"loc": "inputs.0", "msg": "bad"}],
    }
    assert "errors" not in problem(404, "not-found", "no", "abc")
    assert problem(418, "odd", "no", "abc")["title"] == "The request failed"


def test_a_problem_stays_below_four_kilobytes() -> None:
    body = problem(422, "invalid-request", "x" * 10_000, "i" * 128, [{"loc": "l" * 999, "msg": "m" * 999}] * 99)
    assert len(body["detail"]) == 300
    assert len(body["errors"]) <= 10
    assert 1000 < len(to_json(body)) <= 4096
    assert len(describe(InvalidRequest("y" * 1000))) == 300


def test_a_failed_run_says_nothing_of_what_the_runtime_said() -> None:
    failure = InferenceFailed("the model's run failed")
    failure.__cause__ = RuntimeError("/models/secret.onnx")
    assert "secret" not in describe(failure)
    assert status_of(failure) == (500, "inference-failed")


def test_an_item_that_fails_names_its_own_fault() -> None:
    assert item_problem(UndecodableImage("not a picture")) == {
        "type": "urn:focalserve:problem:undecodable-image",
        "status": 422,
        "detail": "not a picture",
    }
