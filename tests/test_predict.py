import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from models.bundle import read_bundle
from models.calibration import probabilities
from models.card import Calibration, ClassFacts
from models.image import load_input
from service.engine import Engine
from tests.serving import SIZE, b64, encoded, pictures, png_of, problem_of, running, settings_of, write_linear

pytestmark = pytest.mark.asyncio(loop_scope="module")
IMAGES = pictures(6)
PNGS = [png_of(image) for image in IMAGES]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(artifacts: Path) -> AsyncGenerator[httpx.AsyncClient]:
    async with running(settings_of(models=artifacts, device="cpu")) as client:
        yield client


@pytest.fixture(scope="module")
def engine(artifacts: Path) -> Engine:
    return Engine(read_bundle(artifacts / "tiny" / "1"), "cpu", 2)


async def predict(http: httpx.AsyncClient, *files: bytes, **options: Any) -> list[dict[str, Any]]:
    answer = await http.post("/predict", json={"inputs": [{"image": b64(file)} for file in files], **options})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
async def test_a_picture_as_it_is_gets_the_answer_of_the_model_itself(
    http: httpx.AsyncClient, engine: Engine, kind: str
) -> None:
    data = encoded(IMAGES[0], kind)
    answer = await http.post("/predict", content=data, headers={"content-type": f"image/{kind.lower()}"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == {"name": "tiny", "version": "1"}
    [item] = body["predictions"]
    card = engine.card
    logits = engine.run(load_input(data, card.input).pixels[None])
    p = probabilities(logits.astype(np.float64), "softmax", card.calibration)[0]
    np.testing.assert_allclose(item["probabilities"], p, rtol=1e-9)
    order = np.argsort(-p)
    assert item["label"] == card.labels[order[0]]
    assert item["score"] == pytest.approx(p[order[0]], rel=1e-9)
    assert item["margin"] == pytest.approx(p[order[0]] - p[order[1]], rel=1e-6)
    assert [one["label"] for one in item["top_k"]] == [card.labels[k] for k in order[:5]]
    assert sum(item["probabilities"]) == pytest.approx(1.0)


async def test_the_three_forms_of_body_give_the_same_answer(http: httpx.AsyncClient) -> None:
    raw = (await http.post("/predict", content=PNGS[0])).json()["predictions"][0]
    [item] = await predict(http, PNGS[0])
    form = await http.post("/predict", files=[("file", ("a.png", PNGS[0], "image/png"))])
    [named] = form.json()["predictions"]
    assert raw == item
    assert named == {**raw, "id": "a.png"}


async def test_many_files_of_a_form_are_answered_in_their_order(http: httpx.AsyncClient) -> None:
    files = [("file", (f"{k}.png", data)) for k, data in enumerate(PNGS)]
    form = (await http.post("/predict", files=files, data={"top_k": "2"})).json()["predictions"]
    alone = [(await predict(http, data, top_k=2))[0] for data in PNGS]
    assert [item["id"] for item in form] == [f"{k}.png" for k in range(6)]
    assert [item["index"] for item in form] == list(range(6))
    assert {item["label"] for item in form} != {form[0]["label"]}, "the pictures must differ to prove anything"
    for item, other in zip(form, alone, strict=True):
        np.testing.assert_allclose(item["probabilities"], other["probabilities"], rtol=1e-4)


async def test_one_bad_picture_among_many_has_its_own_error_and_the_rest_are_answered(http: httpx.AsyncClient) -> None:
    cut = encoded(IMAGES[1], "JPEG")[:-40]
    found = await predict(http, PNGS[0], b"not a picture", PNGS[2], cut, b"")
    assert ["error" in item for item in found] == [False, True, False, True, True]
    assert [item["index"] for item in found] == [0, 1, 2, 3, 4]
    assert {found[i]["error"]["status"] for i in (1, 3, 4)} == {422}
    assert {found[i]["error"]["type"] for i in (1, 3, 4)} == {"urn:focalserve:problem:undecodable-image"}
    assert all("label" not in found[i] for i in (1, 3, 4))
    assert found[0]["label"] == (await predict(http, PNGS[0]))[0]["label"]


async def test_all_pictures_bad_is_still_an_answer_of_their_errors(http: httpx.AsyncClient) -> None:
    found = await predict(http, b"x", b"y")
    assert ["error" in item for item in found] == [True, True]


async def test_ids_come_back_with_their_items(http: httpx.AsyncClient) -> None:
    inputs = [{"id": "ä/1", "image": b64(PNGS[0])}, {"image": b64(b"bad")}, {"id": "ä/1", "image": b64(b"bad")}]
    found = (await http.post("/predict", json={"inputs": inputs})).json()["predictions"]
    assert [item.get("id") for item in found] == ["ä/1", None, "ä/1"]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (10, 10), (1000, 10)])
async def test_top_k_says_how_many_classes(http: httpx.AsyncClient, top_k: int, count: int) -> None:
    [item] = await predict(http, PNGS[0], top_k=top_k)
    assert len(item["top_k"]) == count
    assert item["margin"] >= 0.0
    scores = [one["probability"] for one in item["top_k"]]
    assert scores == sorted(scores, reverse=True)
    query = (await http.post(f"/predict?top_k={top_k}", content=PNGS[0])).json()["predictions"][0]
    assert query["top_k"] == item["top_k"]


async def test_a_model_is_asked_by_name(http: httpx.AsyncClient) -> None:
    assert (await http.post("/predict?model=tiny", content=PNGS[0])).status_code == 200
    problem_of(await http.post("/predict?model=other", content=PNGS[0]), 404, "not-found")


async def test_a_picture_stored_lying_is_answered_upright(http: httpx.AsyncClient) -> None:
    upright = IMAGES[0]
    flipped = upright[:, ::-1]
    turned = upright.transpose(1, 0, 2)
    stored = [upright, flipped, upright[::-1, ::-1], upright[::-1], turned, np.rot90(upright)]
    stored += [turned[::-1, ::-1], np.rot90(upright, -1)]
    files = []
    for orientation, pixels in enumerate(stored, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(encoded(np.ascontiguousarray(pixels), "PNG", exif=exif))
    for item in await predict(http, *files):
        np.testing.assert_allclose(item["probabilities"], (await predict(http, PNGS[0]))[0]["probabilities"], rtol=1e-4)


async def test_the_same_request_among_others_always_gets_the_same_answer(http: httpx.AsyncClient) -> None:
    want = [(await predict(http, data))[0]["probabilities"] for data in PNGS]
    order = np.random.default_rng(0).integers(0, 6, 200).tolist()
    answers = await asyncio.gather(*(http.post("/predict", content=PNGS[k]) for k in order))
    for k, answer in zip(order, answers, strict=True):
        got = answer.json()["predictions"][0]["probabilities"]
        np.testing.assert_allclose(got, want[k], rtol=1e-3, atol=1e-5)


async def test_a_multilabel_model_names_every_class_above_its_threshold(multilabel_artifacts: Path) -> None:
    async with running(settings_of(models=multilabel_artifacts, device="cpu")) as http:
        [info] = (await http.get("/models")).json()
        for item in await predict(http, *PNGS):
            p = item["probabilities"]
            assert len(p) == len(info["labels"])
            assert item["labels"] == [label for label, one in zip(info["labels"], p, strict=True) if one >= 0.5]
            assert item["label"] == info["labels"][int(np.argmax(p))]
            assert item["margin"] == pytest.approx(max(p) - 0.5)


async def test_a_binary_model_says_both_probabilities(binary_artifacts: Path) -> None:
    async with running(settings_of(models=binary_artifacts, device="cpu")) as http:
        [info] = (await http.get("/models")).json()
        for item in await predict(http, *PNGS, top_k=1):
            no, yes = item["probabilities"]
            assert no + yes == pytest.approx(1.0)
            assert item["label"] == info["labels"][yes >= 0.5]
            assert item["score"] == pytest.approx(max(no, yes))
            assert item["margin"] == pytest.approx(abs(yes - 0.5))
            assert len(item["top_k"]) == 1


async def test_a_binary_decision_keeps_to_its_threshold(tmp_path: Path) -> None:
    classes = [
        ClassFacts(label=label, train_count=1, prior=0.5, decision_threshold=threshold)
        for label, threshold in (("no", 0.5), ("yes", 1.0))
    ]
    write_linear(tmp_path, ["no", "yes"], task="binary", classes=classes, calibration=Calibration(temperature=50.0))
    async with running(settings_of(models=tmp_path, device="cpu")) as http:
        for item in await predict(http, *(png_of(image) for image in pictures(4, SIZE))):
            assert item["label"] == "no"


async def test_of_two_models_the_named_or_the_default_one_answers(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_linear(tmp_path, [f"{name}-a", f"{name}-b"], name=name)
    write_linear(tmp_path, ["new-a", "new-b"], name="first", version="10")
    data = png_of(pictures(1, SIZE)[0])
    async with running(settings_of(models=tmp_path, device="cpu")) as http:
        first = (await http.post("/predict?model=first", content=data)).json()
        assert first["model"] == {"name": "first", "version": "10"}
        assert first["predictions"][0]["label"].startswith("new-")
        found = problem_of(await http.post("/predict", content=data), 404, "not-found")
        assert "first, second" in found["detail"]
    async with running(settings_of(models=tmp_path, device="cpu", default_model="second")) as http:
        assert (await http.post("/predict", content=data)).json()["model"]["name"] == "second"


async def test_an_answer_that_is_not_a_number_is_that_items_error_alone(tmp_path: Path) -> None:
    write_linear(tmp_path, divide=True)
    good, black = png_of(pictures(1, SIZE)[0]), png_of(np.zeros((SIZE, SIZE, 3), np.uint8))
    async with running(settings_of(models=tmp_path, device="cpu")) as http:
        found = await predict(http, good, black, good)
        assert ["error" in item for item in found] == [False, True, False]
        assert found[1]["error"]["status"] == 500
        inputs = [{"image": b64(data), "label": 0} for data in (good, black, good)]
        answer = await http.post("/loss", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        items = answer.json()["items"]
        assert ["error" in item for item in items] == [False, True, False]
        assert items[0]["loss"] == items[2]["loss"]


async def test_more_images_than_allowed_are_refused_whole(artifacts: Path) -> None:
    async with running(settings_of(models=artifacts, device="cpu", max_images=3, queue_size=2)) as http:
        assert len(await predict(http, *PNGS[:3])) == 3
        many = {"inputs": [{"image": b64(data)} for data in PNGS[:4]]}
        problem_of(await http.post("/predict", json=many), 413, "too-large")
        form = [("file", (f"{k}", data)) for k, data in enumerate(PNGS[:4])]
        problem_of(await http.post("/predict", files=form), 413, "too-large")


async def test_no_bundle_yet_is_live_but_not_ready(tmp_path: Path) -> None:
    async with running(settings_of(models=tmp_path, device="cpu"), wait=False) as http:
        for _ in range(100):
            await asyncio.sleep(0.01)
            answer = await http.get("/readyz")
            if "no bundle" in answer.text:
                break
        assert "no bundle" in problem_of(answer, 503, "not-ready")["detail"]
        assert answer.headers["retry-after"] == "2"
        assert (await http.get("/healthz")).json()["live"] is True
        problem_of(await http.post("/predict", content=PNGS[0]), 503, "not-ready")
        assert str(tmp_path) not in answer.text and os.sep + tmp_path.name not in answer.text
