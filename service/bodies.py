"""From the bytes of a body to checked fields: content type and JSON rules, before any meaning."""

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ValidationError

from models.image import sniff_format
from service.errors import BodyTooLarge, InvalidRequest, MalformedRequest, UnsupportedMedia

Model = TypeVar("Model", bound=BaseModel)
DEPTH = 32
_MOST_KEYS = 64
_NESTED = (dict, list)
_MOST_VALUES = 1 << 22
_FEW_BYTES = 1 << 20
# Possessive, and an open string runs to the end: linear in the body, whatever stands in it.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_CHUNK = 1 << 16
_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_IMAGE_TYPES = {"image/jpeg": "JPEG", "image/jpg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP"}


def is_form(content_type: str) -> bool:
    """Whether the body is multipart/form-data."""
    return content_type.split(";", 1)[0].strip().lower() == "multipart/form-data"


def media_type(content_type: str, body: bytes) -> Literal["image", "json"]:
    """What a body is that is no form, by Content-Type or, where there is none, by the first bytes.

    Raises:
        UnsupportedMedia: anything else, or a picture of another format than declared.
    """
    declared = content_type.split(";", 1)[0].strip().lower()
    if declared == "application/json" or (declared.startswith("application/") and declared.endswith("+json")):
        return "json"
    found = sniff_format(body)
    if declared in _IMAGE_TYPES:
        if found is not None and found != _IMAGE_TYPES[declared]:
            raise UnsupportedMedia(f"the content type says {_IMAGE_TYPES[declared]}, the body is {found}")
        return "image"
    if declared in ("", "application/octet-stream", "application/x-www-form-urlencoded"):
        # curl --data-binary says urlencoded where it is told nothing: the magic bytes decide.
        if found is not None:
            return "image"
        if body[:1] in (b"{", b"[") and declared != "application/octet-stream":
            return "json"
    raise UnsupportedMedia(
        "send image/jpeg, image/png, image/webp or image/bmp, multipart/form-data, or application/json"
    )


def check_json_size(body: bytes, end: int, most: int) -> None:
    """Refuses JSON whose parsed form would take too much memory, before it is parsed.

    Args:
        body: begins with the JSON.
        end: bytes of JSON.
        most: of them.

    Raises:
        BodyTooLarge: too many bytes, or so short values that there are too many of them.
    """
    if end > most:
        raise BodyTooLarge(f"more than {most} bytes of JSON; send tensors as binary, images as they are or as a form")
    if end > _FEW_BYTES and sum(body.count(mark, 0, end) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise BodyTooLarge(f"more than {_MOST_VALUES} values in JSON; send tensors as binary")


def check_lengths(document: Any, most: int) -> None:
    """Refuses lists that are too long before each of their items gets an error of its own.

    Raises:
        BodyTooLarge: a list of the document has more than `most` items.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if isinstance(value, list) and len(value) > most:
                raise BodyTooLarge(f"{_printable(key)}: {len(value)} in one request; {most} are allowed")


def parse_json(body: bytes) -> Any:
    """A JSON document by RFC 8259, strictly: UTF-8, no NaN, at most 32 deep, 64 different keys in an object.

    Raises:
        MalformedRequest: it is not.
    """
    if _depth(body) > DEPTH:
        raise MalformedRequest(f"the JSON is nested more than {DEPTH} deep")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedRequest("the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise MalformedRequest(f"the body is not valid JSON{where}") from None


def parse_long_json(body: bytes) -> Any:
    """As `parse_json`, in a third of the time: of long lists of numbers, and few objects.

    Raises:
        MalformedRequest: it is not.
    """
    try:
        document = orjson.loads(body)
    except ValueError:
        raise MalformedRequest("the request is not valid JSON") from None
    keys, depth = _measure(document)
    if depth > DEPTH:
        raise MalformedRequest(f"the JSON is nested more than {DEPTH} deep")
    # More colons than keys: a key was given twice, or text has some.
    return parse_json(body) if _more_colons(body, keys) else document


def _measure(value: Any) -> tuple[int, int]:
    """How many keys there are, and how deep it is nested, but for what stands in a list behind something plain."""
    if type(value) not in _NESTED:
        return 0, 0
    if type(value) is list and (not value or type(value[0]) not in _NESTED):
        return 0, 1
    inside: Iterable[Any] = value
    keys = deepest = 0
    if type(value) is dict:
        keys, inside = len(value), value.values()
    for one in inside:
        if type(one) in _NESTED:
            more, depth = _measure(one)
            keys, deepest = keys + more, max(deepest, depth)
    return keys, 1 + deepest


def _more_colons(body: bytes, count: int) -> bool:
    """Whether there are more than so many; `bytes.count` takes ten times as long where they are few."""
    at = -1
    for _ in range(count + 1):
        at = body.find(b":", at + 1)
        if at < 0:
            return False
    return True


def _depth(body: bytes) -> int:
    if body.count(b"[") + body.count(b"{") <= DEPTH:
        return 0
    brackets = np.frombuffer(_STRINGS.sub(b"", body).translate(None, _BRACKETS), np.uint8)
    depth = deepest = 0
    for start in range(0, len(brackets), _CHUNK):
        part = brackets[start : start + _CHUNK]
        depths = depth + np.where((part == ord("[")) | (part == ord("{")), 1, -1).cumsum()
        depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedRequest("the JSON has the same key twice in one object")
    if len(found) > _MOST_KEYS:
        raise MalformedRequest(f"an object of the JSON has more than {_MOST_KEYS} keys")
    return found


def _no_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"{name} is not JSON; a number is finite")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def validate(model: type[Model], document: Any) -> Model:
    """A parsed JSON document as a request.

    Raises:
        InvalidRequest: it does not fit; names the first ten places, never what stands there.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _invalid(error) from None


def validate_strings(model: type[Model], fields: dict[str, Any]) -> Model:
    """Query parameters or form fields, all text, as a request.

    Raises:
        InvalidRequest: a field is unknown or does not fit.
    """
    try:
        return model.model_validate_strings(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    rows = error.errors(include_url=False, include_input=False, include_context=False)
    errors = [
        {"loc": ".".join(_printable(str(part)) for part in row["loc"]), "msg": row["msg"].removeprefix("Value error, ")}
        for row in rows[:10]
    ]
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    first = errors[0]
    return InvalidRequest(f"{first['loc']}: {first['msg']}{more}" if first["loc"] else f"{first['msg']}{more}", errors)


def _printable(text: str) -> str:
    return text[:64].encode("ascii", "replace").decode()
