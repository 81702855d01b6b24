"""Hostile requests: each is refused as the table says, tells nothing, and leaves the service as it was."""

import gzip
import json
import struct
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.serving import b64, encoded, pictures, png_of, problem_of, running, settings_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
MARK = "SECRETMARKER"
PIXELS = pictures(1)[0]
PNG = png_of(PIXELS)
JPEG = encoded(PIXELS, "JPEG")
GOLDEN = {"inputs": [{"id": "golden", "image": b64(PNG)}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(artifacts: Path) -> AsyncGenerator[httpx.AsyncClient]:
    settings = settings_of(models=artifacts, device="cpu", max_body_bytes=1_000_000, max_images=20)
    async with running(settings) as client:
        yield client


@dataclass(frozen=True)
class Hostile:
    """A request, and what it must get."""

    name: str
    status: int
    code: str
    body: bytes
    type: str | None = "application/json"
    path: str = "/predict"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def json_of(document: Any) -> bytes:
    return json.dumps(document).encode()


def malformed(name: str, body: bytes) -> Hostile:
    return Hostile(name, 400, "malformed-request", body)


def invalid(name: str, body: Any, path: str = "/predict") -> Hostile:
    return Hostile(name, 422, "invalid-request", body if isinstance(body, bytes) else json_of(body), path=path)


def image(
    name: str, data: bytes, status: int = 422, code: str = "undecodable-image", type: str = "image/png"
) -> Hostile:
    return Hostile(name, status, code, data, type)


def labelled(name: str, label: str) -> Hostile:
    row = json.dumps([1.0] * 10)
    return invalid(f"label {name}", f'{{"logits": [{row}], "labels": [{label}]}}'.encode(), "/loss")


def scored(name: str, code: str = "invalid-request", row: str = "[0,1,2,3,4,5,6,7,8,9]", more: str = "") -> Hostile:
    return Hostile(name, 422, code, f'{{"logits": [{row}], "labels": [0]{more}}}'.encode(), path="/loss")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    data = b"Comment\0\0" + zlib.compress(b"\0" * 80_000_000)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return PNG[:33] + chunk + PNG[33:]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def form(*parts: str, end: str = "--X--\r\n") -> bytes:
    return "".join(f"--X\r\n{part}\r\n" for part in parts).encode() + end.encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'
FIELD = f'Content-Disposition: form-data; name="z"\r\n\r\n{MARK}'
FORM = "multipart/form-data; boundary=X"
IMAGE = {"image": b64(PNG)}

CASES = [
    malformed("empty body", b""),
    malformed("broken JSON", f'{{"inputs": [{MARK}'.encode()),
    malformed("trailing comma", b'{"inputs": [],}'),
    malformed("invalid UTF-8", b'{"inputs": "\xff\xfe"}'),
    malformed("byte order mark", b"\xef\xbb\xbf" + json_of(GOLDEN)),
    malformed("UTF-16", json.dumps(GOLDEN).encode("utf-16")),
    malformed("NaN", b'{"top_k": NaN}'),
    malformed("minus Infinity", b'{"top_k": -Infinity}'),
    malformed("an unknown field that is NaN", b'{"x": NaN}'),
    malformed("5000 digits", b'{"top_k": ' + b"9" * 5000 + b"}"),
    malformed("33 deep", b"[" * 33 + b"]" * 33),
    malformed("250 000 deep", b"[" * 250_000),
    malformed("the same key twice", b'{"inputs": [], "inputs": []}'),
    invalid("a list at the top", [MARK]),
    invalid("null at the top", None),
    invalid("text at the top", MARK),
    invalid("no inputs", {}),
    invalid("an empty batch", {"inputs": []}),
    invalid("an unknown field", {**GOLDEN, "extra": MARK}),
    invalid("an unknown field of an item", {"inputs": [{**IMAGE, "extra": MARK}]}),
    invalid("true for a number", {**GOLDEN, "top_k": True}),
    invalid("text for a number", {**GOLDEN, "top_k": MARK}),
    invalid("1.5 for a whole number", {**GOLDEN, "top_k": 1.5}),
    invalid("1e400 for a whole number", b'{"inputs": [], "top_k": 1e400}'),
    invalid("a number for a picture", {"inputs": [{"image": 5}]}),
    invalid("a lone surrogate in an id", b'{"inputs": [{"id": "\\ud800", "image": ""}]}'),
    invalid("a zero byte in an id", {"inputs": [{**IMAGE, "id": "\0"}]}),
    invalid("a long id", {"inputs": [{**IMAGE, "id": MARK * 100}]}),
    Hostile("a lone surrogate for a picture", 422, "undecodable-image", b'{"inputs": [{"image": "\\ud800"}]}'),
    Hostile("a file URL", 422, "undecodable-image", json_of({"inputs": [{"image": f"file:///etc/{MARK}"}]})),
    Hostile("an http URL", 422, "undecodable-image", json_of({"inputs": [{"image": "http://127.0.0.1/" + MARK}]})),
    Hostile("a data URI", 422, "undecodable-image", json_of({"inputs": [{"image": "data:image/png;base64,AAAA"}]})),
    Hostile("bad padding", 422, "undecodable-image", json_of({"inputs": [{"image": b64(PNG)[:-1]}]})),
    Hostile("more images than allowed", 413, "too-large", json_of({"inputs": [IMAGE] * 21})),
    Hostile("a body over the limit", 413, "too-large", b"x" * 1_000_001),
    Hostile("a gzip bomb", 413, "too-large", gzip.compress(bytes(20_000_000)), headers={"content-encoding": "gzip"}),
    Hostile("not gzip", 400, "malformed-request", MARK.encode(), headers={"content-encoding": "gzip"}),
    Hostile("brotli", 415, "unsupported-media-type", b"{}", headers={"content-encoding": "br"}),
    Hostile("a wrong content type", 415, "unsupported-media-type", PNG, "text/plain"),
    Hostile("a content type of another picture", 415, "unsupported-media-type", JPEG, "image/png"),
    Hostile("no content type and no picture", 415, "unsupported-media-type", MARK.encode(), None),
    Hostile("an unknown model", 404, "not-found", PNG, "image/png", f"/predict?model={MARK}"),
    Hostile("a model of many letters", 404, "not-found", PNG, "image/png", "/predict?model=" + "../" * 99),
    Hostile("an unknown query", 422, "invalid-request", PNG, "image/png", f"/predict?topk={MARK}"),
    Hostile("a repeated query", 422, "invalid-request", PNG, "image/png", "/predict?top_k=1&top_k=2"),
    Hostile("a query beside JSON", 422, "invalid-request", json_of(GOLDEN), path=f"/predict?model={MARK}"),
    Hostile("an unknown path", 404, "not-found", b"", path=f"/v2/../{MARK}", method="GET"),
    Hostile("an unknown page", 404, "not-found", b"", path=f"/web/{MARK}", method="GET"),
    Hostile("a hidden path", 404, "not-found", b"", path="/web/%2e%2e%2fapp.py", method="GET"),
    Hostile("a wrong method", 405, "method-not-allowed", b"", path="/predict", method="DELETE"),
    Hostile("TRACE", 405, "method-not-allowed", b"", path="/healthz", method="TRACE"),
    Hostile("headers of 40 KB", 431, "headers-too-large", PNG, "image/png", headers={"x-long": "a" * 40_000}),
    Hostile("200 headers", 431, "headers-too-large", PNG, headers={f"x-{k}": MARK for k in range(200)}),
    Hostile("a form without a boundary", 400, "malformed-request", form(FILE), "multipart/form-data"),
    Hostile("a form of garbage", 400, "malformed-request", MARK.encode() * 9, FORM),
    Hostile("a form that is cut off", 400, "malformed-request", form(FILE, end=""), FORM),
    Hostile("a form without files", 422, "invalid-request", form(), FORM),
    Hostile("a form of too many files", 413, "too-large", form(*[FILE] * 21), FORM),
    Hostile("a form with an unknown field", 422, "invalid-request", form(FILE, FIELD), FORM),
    image("an empty picture", b""),
    image("random bytes", np.random.default_rng(0).bytes(1024)),
    image("a PDF", b"%PDF-1.4 " + MARK.encode()),
    image("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + MARK.encode()),
    image("half a JPEG", JPEG[: len(JPEG) // 2], type="image/jpeg"),
    image("a JPEG without its end", JPEG[:-2], type="image/jpeg"),
    image("half a PNG", PNG[: len(PNG) // 2]),
    image("a PNG with a wrong sum", flipped(PNG, 45)),
    image("a PNG of 0 x 0", png_header(0, 0)),
    image("a PNG of 50 000 x 50 000", png_header(50_000, 50_000), 413, "image-too-large"),
    image("a PNG of 7000 x 7000", png_header(7000, 7000), 413, "image-too-large"),
    image("a PNG of 60 000 x 1", png_header(60_000, 1), 413, "image-too-large"),
    image("a PNG with a text bomb", text_bomb()),
    labelled("-1", "-1"),
    labelled("K", "10"),
    labelled("2 to the 63", str(2**63)),
    labelled("1.0", "1.0"),
    labelled("true", "true"),
    labelled("null", "null"),
    labelled("text of a number", '"1"'),
    labelled("unknown name", f'"{MARK}"'),
    labelled("short soft vector", "[0.5, 0.5]"),
    labelled("soft vector of sum 2", json.dumps([0.2] * 10)),
    labelled("soft vector below 0", json.dumps([-1.0, 2.0, *[0.0] * 8])),
    labelled("with a surrogate", '"\\ud800"'),
    invalid("fewer labels than rows", {"logits": [[0.0] * 10] * 2, "labels": [1]}, "/loss"),
    invalid("a picture and logits", {"inputs": [{**IMAGE, "logits": [0.0] * 10, "label": 1}]}, "/loss"),
    invalid("an item of nothing", {"inputs": [{"label": 1}]}, "/loss"),
    invalid("probabilities of sum 2", {"probabilities": [[0.2] * 10], "labels": [0]}, "/loss"),
    invalid("a probability of 1.5", {"probabilities": [[1.5, -0.5, *[0.0] * 8]], "labels": [0]}, "/loss"),
    invalid("one bad label in 256", {"logits": [[0.0] * 10] * 256, "labels": [1] * 255 + [99]}, "/loss"),
    scored("logits of 1e400", row="[1e400,0,0,0,0,0,0,0,0,0]"),
    scored("logits beyond the largest loss", "invalid-input", row="[-1.7e308,1.7e308,0,0,0,0,0,0,0,0]"),
    scored("a row that is too short", row="[1, 2]"),
    scored("a row of text", row=f'["{MARK}",0,0,0,0,0,0,0,0,0]'),
    scored("a row of truths", row="[true,0,0,0,0,0,0,0,0,0]"),
    scored("a nested row", row="[[1],0,0,0,0,0,0,0,0,0]"),
    scored("gamma -1", more=', "gamma": -1'),
    scored("gamma 1e400", more=', "gamma": 1e400'),
    scored("gamma as text", more=f', "gamma": "{MARK}"'),
    scored("alpha 2 for a sigmoid", "invalid-input", more=', "alpha": 2, "activation": "sigmoid"'),
    scored("one alpha for a softmax", "invalid-input", more=', "alpha": 0.25'),
    scored("an alpha that is too short", "invalid-input", more=', "alpha": [1, 1]'),
    scored("a negative alpha", more=', "alpha": [-1,1,1,1,1,1,1,1,1,1]'),
    scored("label_smoothing 1.5", more=', "label_smoothing": 1.5'),
    scored("an unknown reduction", more=f', "reduction": "{MARK}"'),
    scored("an unknown option", more=f', "gama": "{MARK}"'),
    scored("from something else", more=f', "from": "{MARK}"'),
]  # fmt: skip


async def send(http: httpx.AsyncClient, case: Hostile) -> httpx.Response:
    headers = {**case.headers, **({"content-type": case.type} if case.type is not None else {})}
    return await http.request(case.method, case.path, content=case.body, headers=headers)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
async def test_a_hostile_request_is_refused_and_leaves_no_trace(http: httpx.AsyncClient, case: Hostile) -> None:
    before = await http.post("/predict", json=GOLDEN)
    assert before.status_code == 200
    answer = await send(http, case)
    problem_of(answer, case.status, case.code)
    assert MARK not in answer.text
    assert "etc" not in answer.text.split() and "ONNX" not in answer.text
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.post("/predict", json=GOLDEN)).content == before.content


async def test_huge_but_finite_logits_have_a_finite_loss(http: httpx.AsyncClient) -> None:
    for most in (1e4, 3e38):
        body = {"logits": [[most, -most, *[0.0] * 8]] * 2, "labels": [0, 1], "return_gradient": True}
        answer = await http.post("/loss", json=body)
        assert answer.status_code == 200, answer.text
        right, wrong = answer.json()["items"]
        assert right["loss"] == 0.0 and wrong["loss"] == pytest.approx(2 * most)
        assert np.isfinite(right["gradient"]).all() and np.isfinite(wrong["gradient"]).all()


async def test_odd_but_whole_pictures_are_answered(http: httpx.AsyncClient) -> None:
    bomb = encoded(np.zeros((8, 8, 3), np.uint8), "PNG")
    for data in (PNG + b"trailing" * 128, JPEG + b"PK\3\4" * 99, encoded(PIXELS[:1, :1], "PNG"), bomb):
        assert (await http.post("/predict", content=data)).status_code == 200


async def test_a_request_id_that_is_safe_comes_back_and_another_does_not(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 129, "<script>", "é"):
        answer = await http.get("/healthz", headers=[(b"x-request-id", bad.encode())])
        assert answer.headers["x-request-id"] != bad
