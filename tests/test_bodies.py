import json
import time
from typing import Any

import pytest

from service.bodies import (
    check_json_size,
    check_lengths,
    is_form,
    media_type,
    parse_json,
    validate,
    validate_strings,
)
from service.errors import BodyTooLarge, InvalidRequest, MalformedRequest, UnsupportedMedia
from service.schemas import LossOptions, PredictOptions, PredictRequest
from tests.serving import encoded, pictures, png_of

PNG = png_of(pictures(1)[0])


@pytest.mark.parametrize(
    ("declared", "body", "kind"),
    [
        ("application/json", b"{}", "json"),
        ("application/json; charset=utf-8", b"nonsense", "json"),
        ("application/vnd.x+json", b"{}", "json"),
        ("image/png", PNG, "image"),
        ("image/jpg", encoded(pictures(1)[0], "JPEG"), "image"),
        ("IMAGE/PNG", b"damaged", "image"),
        (None, PNG, "image"),
        (None, b'{"inputs": []}', "json"),
        ("application/octet-stream", encoded(pictures(1)[0], "BMP"), "image"),
        ("application/x-www-form-urlencoded", encoded(pictures(1)[0], "WEBP"), "image"),
    ],
)
def test_the_content_type_or_else_the_first_bytes_say_what_it_is(declared: str | None, body: bytes, kind: str) -> None:
    assert media_type(declared or "", body) == kind


@pytest.mark.parametrize(
    ("declared", "form"),
    [
        ("multipart/form-data; boundary=x", True),
        ("Multipart/Form-Data ;boundary=x", True),
        ("multipart/mixed; boundary=x", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_a_form_is_told_by_its_type(declared: str, form: bool) -> None:
    assert is_form(declared) is form


@pytest.mark.parametrize(
    ("declared", "body"),
    [
        ("text/plain", PNG),
        ("image/gif", b"GIF89a"),
        ("image/png", encoded(pictures(1)[0], "JPEG")),
        ("application/octet-stream", b"{}"),
        ("", b"hello"),
        ("application/x-www-form-urlencoded", b"a=b"),
    ],
)
def test_anything_else_is_an_unsupported_type(declared: str, body: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        media_type(declared, body)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_json_is_read_as_json_reads_it() -> None:
    document = {"a": [1, 2.5, 'é"[{', None, True, {"b": -1e-300}], "c": "x" * 10_000}
    assert parse_json(json.dumps(document).encode()) == document
    assert parse_json(nested(32)) is not None
    assert parse_json(json.dumps(["[" * 50, "{\\" * 50] + [[]] * 40).encode())[0] == "[" * 50


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"NaN",
        b"[-Infinity]",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b"9" * 5000,
        nested(33),
        nested(100_000),
        b'{"a":' * 250_000,
        b"[" * 40 + b'"' + b'\\"' * 20,
        b"{} {}",
        b'"\x00"',
    ],
    ids=range(18),
)
def test_what_is_not_strict_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_json(body)


def test_depth_is_counted_over_any_number_of_brackets() -> None:
    assert len(parse_json(b"[" + b"[[]]," * 40_000 + b"{}]")) == 40_001
    with pytest.raises(MalformedRequest, match="32 deep"):
        parse_json(b"[" + b"[[]]," * 40_000 + nested(32) + b"]")


@pytest.mark.parametrize(
    "body",
    [b"[" * 40 + b'"' + b'\\"' * 500_000, b"[" * 40 + b'"\\' * 500_000, b"[" * 40 + b"\\" * 1_000_000, b'"' * 999_999],
    ids=["open string of escaped quotes", "quotes and backslashes", "backslashes", "quotes"],
)
def test_no_body_makes_the_depth_check_slow(body: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(MalformedRequest):
        parse_json(body)
    assert time.perf_counter() - began < 1.0


def test_an_object_of_very_many_keys_is_refused() -> None:
    assert len(parse_json(json.dumps({f"k{k}": k for k in range(64)}).encode())) == 64
    with pytest.raises(MalformedRequest, match="64 keys"):
        parse_json(json.dumps({f"k{k}": k for k in range(65)}).encode())


def test_json_of_very_many_short_values_is_refused_before_it_is_parsed() -> None:
    check_json_size(b"[" + b"0.123456," * 400_000 + b"0]", 3_600_003, 4_000_000)
    for short in (b"1,", b"[],", b"{},"):
        body = b"[" + short * 5_000_000 + b"1]"
        with pytest.raises(BodyTooLarge, match="values"):
            check_json_size(body, len(body), 1 << 25)
        check_json_size(body, 1000, 1 << 25)
    with pytest.raises(BodyTooLarge, match="100 bytes"):
        check_json_size(b" " * 101, 101, 100)


def test_lists_that_are_too_long_are_refused_before_each_item_has_its_error() -> None:
    check_lengths({"inputs": [1] * 10, "top_k": 5}, 10)
    check_lengths([1] * 11, 10)
    with pytest.raises(BodyTooLarge, match="labels: 11 in one request; 10 are allowed"):
        check_lengths({"logits": [1], "labels": [1] * 11}, 10)


def test_what_does_not_fit_is_named_but_not_repeated() -> None:
    document: dict[str, Any] = {"inputs": [{"image": 5}, {"image": "SECRET", "wrong": "SECRET"}], "top_k": "SECRET"}
    with pytest.raises(InvalidRequest) as caught:
        validate(PredictRequest, document)
    assert [error["loc"] for error in caught.value.errors] == ["top_k", "inputs.0.image", "inputs.1.wrong"]
    assert "SECRET" not in str(caught.value) + str(caught.value.errors)


def test_at_most_ten_places_are_named() -> None:
    with pytest.raises(InvalidRequest, match="and 49 more") as caught:
        validate(PredictRequest, {"inputs": [{"image": 5}] * 50})
    assert len(caught.value.errors) == 10


def test_text_fields_become_numbers_where_they_are_numbers() -> None:
    assert validate_strings(PredictOptions, {"top_k": "3"}).top_k == 3
    options = validate_strings(
        LossOptions, {"gamma": "0.5", "alpha": "0.25", "from": "image", "return_gradient": "true"}
    )
    assert (options.gamma, options.alpha, options.source, options.return_gradient) == (0.5, 0.25, "image", True)
    for wrong in ({"gamma": "nan"}, {"gamma": "-1"}, {"gamma": "x"}, {"gama": "1"}, {"ignore_index": "1.5"}):
        with pytest.raises(InvalidRequest):
            validate_strings(LossOptions, wrong)
