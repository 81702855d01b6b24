"""Forms are read as the field's own parser reads them, and broken ones are refused."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from service.errors import BodyTooLarge, MalformedRequest
from service.forms import Form, FormFile, FormReader
from tests.serving import pictures, png_of

PNG = png_of(pictures(1)[0])


def form_body(*parts: tuple[str, bytes], boundary: str = "X") -> bytes:
    lines = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
    return lines + f"--{boundary}--\r\n".encode()


def part(name: str, file: str | None = None) -> str:
    return f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file is not None else "")


FORM = "multipart/form-data; boundary=X"


def parse_form(content_type: str, body: bytes, most: int) -> Form:
    return FormReader(content_type, most).finish(body)


def test_a_form_keeps_files_in_order_and_every_value_of_a_field() -> None:
    body = form_body(
        (part("file", "a.png"), PNG),
        (part("label"), b"x"),
        (part("file", "b.png"), b"two\r\n-X"),
        (part("label"), "é".encode()),
    )
    form = parse_form(FORM, body, 10)
    assert [(file.name, file.data) for file in form.files] == [("a.png", PNG), ("b.png", b"two\r\n-X")]
    assert form.fields == {"label": ["x", "é"]}


def test_a_form_with_too_many_files_is_refused() -> None:
    body = form_body(*[(part("file", f"{k}.png"), b"x") for k in range(4)])
    assert len((parse_form(FORM, body, 4)).files) == 4
    for before in (b"", b"\r\n", b"hello\r\n"):
        with pytest.raises(BodyTooLarge):
            parse_form(FORM, before + body, 3)
        with pytest.raises(BodyTooLarge):
            parse_form(FORM, before + form_body(*[(part("file", "a"), b"x")] * 40), 3)
    labelled = form_body(*[(part("file", "a"), b"x"), (part("label"), b"y")] * 3)
    assert len(parse_form(FORM, b"hello\r\n" + labelled, 3).fields["label"]) == 3


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("multipart/form-data", b"--X--"),
        ("multipart/form-data; boundary=", b"--X--"),
        ("multipart/form-data; boundary=X", b"garbage"),
        ("multipart/form-data; boundary=X", form_body(("Content-Type: text/plain", b"x"))),
        ("multipart/form-data; boundary=X", form_body((part("file", "a"), b"x"))[:-8]),
        ("multipart/form-data; boundary=X", form_body(("bad header", b"x"))),
        ("multipart/form-data; boundary=X", f"--X\r\n{part('a')}\r\n--X--\r\n".encode()),
        ("multipart/form-data; boundary=X", f"--X\r\n{part('a')}\r\n\r\n1\r\n--X\r\n{part('a')}\r\n--X--".encode()),
        ("multipart/form-data; boundary=X", f"--X \r\n{'x' * 9000}\r\n\r\n1\r\n--X--".encode()),
    ],
    ids=[
        "no boundary",
        "empty boundary",
        "garbage",
        "no name",
        "cut",
        "bad header",
        "no data",
        "no data again",
        "long head",
    ],
)
def test_a_broken_form_is_malformed(headers: str, body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_form(headers, body, 10)
    reader = FormReader(headers, 10)
    for cut in range(len(body)):
        with contextlib.suppress(MalformedRequest):
            reader.feed(body[:cut])
    with pytest.raises(MalformedRequest):
        reader.finish(body)


def by_starlette(content_type: str, body: bytes) -> Form:
    async def read() -> Form:
        async def once() -> AsyncGenerator[bytes, None]:
            yield body

        found = Form([], {})
        parsed = await MultiPartParser(Headers({"content-type": content_type}), once()).parse()
        for key, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                found.files.append(FormFile(value.filename, await value.read()))
            else:
                found.fields.setdefault(key, []).append(value)
        await parsed.close()
        return found

    return asyncio.run(read())


NAMES = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
FILES = st.tuples(NAMES, st.binary(max_size=40) | st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r\n\r\n", PNG]))


@given(st.lists(FILES, max_size=5), st.dictionaries(NAMES, st.text(max_size=12), max_size=3))
def test_what_a_client_sends_is_read_as_by_starlette(files: list[tuple[str, bytes]], fields: dict[str, str]) -> None:
    request = httpx.Request("POST", "http://x/", data=fields, files=[("file", file) for file in files] or {"file": b""})
    content_type, body = request.headers["content-type"], request.read()
    assert parse_form(content_type, body, 10) == by_starlette(content_type, body)


@given(st.lists(FILES, max_size=5), st.dictionaries(NAMES, st.text(max_size=12), max_size=3), st.lists(st.floats(0, 1)))
def test_it_does_not_matter_how_a_form_comes(
    files: list[tuple[str, bytes]], fields: dict[str, str], cuts: list[float]
) -> None:  # fmt: skip
    request = httpx.Request("POST", "http://x/", data=fields, files=[("file", file) for file in files] or {"file": b""})
    content_type, body = request.headers["content-type"], b"before" + b"\r\n" + request.read() + b"behind"
    reader, taken = FormReader(content_type, 10), 0
    for cut in sorted(cuts):
        come = memoryview(body)[: round(cut * len(body))]
        reader.feed(come)
        assert taken <= reader.taken <= len(come)
        taken = reader.taken
    assert reader.finish(memoryview(body)) == parse_form(content_type, body, 10)


@pytest.mark.parametrize(
    "head",
    [
        'content-disposition:form-data; filename="a.png"; name=file',
        'CONTENT-DISPOSITION: form-data; name="file"; filename="C:\\\\photos\\\\a.png"',
        'Content-Disposition: form-data; name="file"; filename="a\\"b.png"',
        'Content-Type: image/png\r\nContent-Disposition: form-data; name="file"; filename="a.png" ',
    ],
)
def test_unusual_headers_are_read_as_by_starlette(head: str) -> None:
    body = form_body((head, PNG))
    assert parse_form(FORM, body, 10) == by_starlette(FORM, body)


def test_what_stands_before_and_after_the_parts_means_nothing() -> None:
    body = b"hello\r\n" + form_body((part("file", "a"), PNG)).replace(b"--X\r\n", b"--X \t\r\n") + b"goodbye\r\n--X\r\n"
    assert parse_form(FORM, body, 1).files == [FormFile("a", PNG)]


def test_a_boundary_that_begins_a_line_of_data_is_refused_and_not_guessed_at() -> None:
    with pytest.raises(MalformedRequest):
        parse_form(FORM, form_body((part("file", "a"), b"one\r\n--Xtwo")), 10)
