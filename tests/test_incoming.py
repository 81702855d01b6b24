"""Pictures of a form are run while the rest of it is on its way, and what comes of it is what comes of a whole one."""

import asyncio
import itertools
import re
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.calibration import log_softmax
from tests.lines import Line, Site, site
from tests.serving import SIZE, Json, linear_logits, linear_weights, pictures, png_of, write_linear
from tests.test_forms import form_body, part

COUNT, PART = 200, 64
IMAGES = pictures(16, SIZE)
FILES = [png_of(IMAGES[k % 16]) for k in range(COUNT)]
PADDING = b"\0" * 2000
"""Behind a PNG's end; decoders pass over it. With it the form comes in many reads."""
EXPECTED = np.exp(log_softmax(linear_logits(IMAGES, linear_weights(2))))
PICTURES = [(part("file", str(k)), file + PADDING) for k, file in enumerate(FILES)]


def request(*parts: tuple[str, bytes], path: str = "/predict", boundary: str = "X", cut: int = 0) -> bytes:
    body = form_body(*parts)
    body = body[: len(body) - cut]
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary={boundary}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ran(server: Site, model: str = "linear") -> int:
    """Pictures that a model has run."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://127.0.0.1:{server.port}/metrics")).text
    found = re.search(rf'focalserve_batch_size_images_sum{{model="{model}"[^}}]*}} (\S+)', text)
    return 0 if found is None else int(float(found[1]))


async def until(server: Site, count: int, model: str = "linear") -> None:
    async with asyncio.timeout(10):
        while await ran(server, model) < count:
            await asyncio.sleep(0.01)


def check(answer: Json, model: str = "linear") -> None:
    assert answer["model"]["name"] == model
    found = answer["predictions"]
    assert [one["id"] for one in found] == [str(k) for k in range(COUNT)]
    for k, one in enumerate(found):
        assert np.allclose(one["probabilities"], EXPECTED[k % 16], rtol=1e-3, atol=1e-5)


async def goes_on(line: Line) -> None:
    """The connection is as good as new."""
    await line.send(request(*PICTURES))
    check((await line.read()).json)


async def test_they_run_before_the_rest_is_there_and_only_once(tmp_path: Path) -> None:
    async with site(tmp_path) as server:
        line = await server.connect()
        sent = request(*PICTURES)
        for times in range(2):
            before = await ran(server)
            await line.send(sent[:-1000])
            await until(server, before + PART)
            await line.send(sent[-1000:])
            check((await line.read()).json)
            assert await ran(server) - before == COUNT, times


async def test_labels_that_come_last_are_scored_as_those_of_a_whole_form(tmp_path: Path) -> None:
    labels = [(part("label"), b"ab"[k % 2 : k % 2 + 1]) for k in range(COUNT)]
    body = [(name, data) for pair in zip(PICTURES, labels, strict=True) for name, data in pair]
    async with site(tmp_path) as server:
        line = await server.connect()
        answers = []
        for parts in ([*PICTURES, *labels], body):
            for cuts in ([], [100_000, 250_000]):
                sent = request(*parts, path="/loss")
                edges = [0, *cuts, len(sent)]
                await line.send(*(sent[a:b] for a, b in itertools.pairwise(edges)))
                answers.append((await line.read()).json)
        assert len(answers[0]["items"]) == COUNT and all(answer == answers[0] for answer in answers)
        given = [EXPECTED[k % 16, k % 2] for k in range(COUNT)]
        assert [one["p_given"] for one in answers[0]["items"]] == pytest.approx(given, rel=1e-3, abs=1e-5)
        assert await ran(server) == 4 * COUNT


async def test_a_model_that_is_named_behind_them_answers_all_the_same(tmp_path: Path) -> None:
    write_linear(tmp_path, ["a", "b"], name="other")
    name = (part("model"), b"other")
    async with site(tmp_path, default_model="linear") as server:
        line = await server.connect()
        for parts, default in (([*PICTURES, name], PART), ([name, *PICTURES], 0)):
            before = await ran(server), await ran(server, "other")
            sent = request(*parts)
            await line.send(sent[:-1000])
            await until(server, before[0] + default)
            await line.send(sent[-1000:])
            check((await line.read()).json, "other")
            assert await ran(server, "other") - before[1] == COUNT
            assert server.state.catalog.get("linear").batcher.holders == 0
        await line.send(request(*PICTURES, path="/predict?model=other"))
        check((await line.read()).json, "other")
        assert await ran(server) == before[0], "what the query or a field before them names is known"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(*PICTURES, boundary="Y"), 400),
        (request(*PICTURES, cut=9), 400),
        (request(*PICTURES[:99], ("bad header", b""), *PICTURES), 400),
        (request(*PICTURES, path="/predict?model=none"), 404),
        (request(*PICTURES, (part("model"), b"none")), 404),
        (request((part("model"), b"none"), *PICTURES), 404),
        (request(*PICTURES, path="/predict?top_k=0"), 422),
        (request(*PICTURES, path="/predict?a=1&a=2"), 422),
        (request(*PICTURES, *PICTURES, PICTURES[0]), 413),
        (request(*PICTURES, (part("label"), b"a"), path="/loss"), 422),
    ],
    ids=[
        "boundary",
        "cut",
        "header",
        "query's model",
        "field's model",
        "field's model first",
        "option",
        "query twice",
        "too many",
        "labels",
    ],
)
async def test_what_is_refused_is_refused_once_it_is_there(tmp_path: Path, sent: bytes, status: int) -> None:
    async with site(tmp_path, max_images=2 * COUNT) as server:
        for parts in ([sent], [sent[:200_000], sent[200_000:]]):
            line = await server.connect()
            await line.send(*parts)
            answer = await line.read()
            assert answer.status == status, answer.body
            await goes_on(line if status != 413 else await server.connect())


async def test_a_client_that_leaves_or_stalls_leaves_nothing_behind(tmp_path: Path) -> None:
    async with site(tmp_path, body_timeout=0.3, queue_size=PART) as server:
        leaving, stalling, staying = [await server.connect() for _ in range(3)]
        await leaving.send(request(*PICTURES)[:-1000])
        leaving.writer.close()
        await stalling.send(request(*PICTURES)[:-1000])
        assert (await stalling.read()).status == 408
        await goes_on(staying)
        batcher = server.state.catalog.get("linear").batcher
        assert (batcher.holders, batcher.load) == (0, 0)


async def test_a_model_may_be_exchanged_while_they_come(tmp_path: Path) -> None:
    async with site(tmp_path) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
        line = await server.connect()
        sent = request(*PICTURES)
        await line.send(sent[:200_000])
        await until(server, PART)
        async with asyncio.timeout(10):
            assert (await http.post("/v2/repository/models/linear/load")).status_code == 200
        await line.send(sent[200_000:])
        check((await line.read()).json)


async def test_pictures_of_a_net_that_is_not_quick_are_run_as_ever(tmp_path: Path) -> None:
    write_linear(tmp_path, ["a", "b"], rounds=1000, name="slow")
    async with site(tmp_path) as server:
        line = await server.connect()
        sent = request(*PICTURES, path="/predict?model=slow")
        await line.send(sent[:200_000], sent[200_000:])
        check((await line.read()).json, "slow")
        assert await ran(server, "slow") == COUNT
