import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from models.bundle import read_bundle
from models.image import load_input
from models.losses import softmax_focal
from service.engine import Engine
from tests.serving import b64, pictures, png_of, problem_of, running, settings_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
K = 10
PNGS = [png_of(image) for image in pictures(8)]
ROWS = np.random.default_rng(3).normal(scale=3.0, size=(40, K))
LABELS = np.random.default_rng(4).integers(0, K, 40).tolist()
Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(artifacts: Path) -> AsyncGenerator[httpx.AsyncClient]:
    async with running(settings_of(models=artifacts, device="cpu")) as client:
        yield client


async def loss(http: httpx.AsyncClient, **body: Any) -> Json:
    answer = await http.post("/loss", json=body)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def rows(http: httpx.AsyncClient, logits: NDArray[np.float64] = ROWS, labels: Any = None, **options: Any) -> Json:
    return await loss(http, logits=logits.tolist(), labels=LABELS if labels is None else labels, **options)


def values(answer: Json, field: str = "loss") -> list[Any]:
    return [item[field] for item in answer["items"]]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


async def test_a_rows_loss_is_the_focal_loss_of_article_and_formula(http: httpx.AsyncClient) -> None:
    answer = await rows(http, gamma=2.0)
    p = softmax(ROWS)[np.arange(40), LABELS]
    np.testing.assert_allclose(values(answer), -((1 - p) ** 2) * np.log(p), rtol=1e-10)
    np.testing.assert_allclose(values(answer, "p_given"), p, rtol=1e-10)
    np.testing.assert_allclose(values(answer, "log_p_given"), np.log(p), rtol=1e-10)
    assert answer["parameters"]["gamma"] == 2.0 and answer["parameters"]["alpha"] is None


async def test_items_and_columns_are_the_same_request(http: httpx.AsyncClient) -> None:
    items = [
        {"id": str(k), "logits": row, "label": label}
        for k, (row, label) in enumerate(zip(ROWS.tolist(), LABELS, strict=True))
    ]
    columns = await rows(http, ids=[str(k) for k in range(40)])
    assert await loss(http, inputs=items) == columns
    assert await loss(http, items=items) == columns
    assert values(columns, "id") == [str(k) for k in range(40)]


async def test_every_items_loss_is_that_of_its_single_request(http: httpx.AsyncClient) -> None:
    together = await rows(http, return_gradient=True, reduction="sum")
    for k in range(0, 40, 4):
        alone = await rows(http, ROWS[k : k + 1], LABELS[k : k + 1], return_gradient=True, reduction="sum")
        [item], mate = alone["items"], together["items"][k]
        for field in ("loss", "log_p_given", "p_given", "margin", "quality"):
            assert abs(item[field] - mate[field]) <= 1e-9, field
        np.testing.assert_allclose(item["gradient"], mate["gradient"], atol=1e-9)
        assert (item["suggested_label"], item["is_issue"]) == (mate["suggested_label"], mate["is_issue"])


async def test_pictures_are_scored_by_the_models_own_logits(http: httpx.AsyncClient, artifacts: Path) -> None:
    engine = Engine(read_bundle(artifacts / "tiny" / "1"), "cpu", 2)
    images = np.stack([load_input(data, engine.card.input).pixels for data in PNGS])
    logits = engine.run(images).astype(np.float64)
    given = [{"image": b64(data), "label": engine.card.labels[k]} for k, data in enumerate(PNGS)]
    pictured = await loss(http, inputs=given)
    computed = await rows(http, logits, list(range(8)))
    np.testing.assert_allclose(values(pictured), values(computed), rtol=1e-4)
    np.testing.assert_allclose(values(pictured), softmax_focal(logits, np.arange(8), gamma=2.0).values, rtol=1e-4)
    np.testing.assert_allclose(values(pictured, "quality"), values(computed, "quality"), rtol=1e-4)


async def test_the_three_forms_of_body_give_the_same_score(http: httpx.AsyncClient, artifacts: Path) -> None:
    name = read_bundle(artifacts / "tiny" / "1").card.labels[3]
    as_json = await loss(http, inputs=[{"image": b64(PNGS[0]), "label": name}], gamma=0.5)
    raw = await http.post("/loss", params={"label": name, "gamma": "0.5"}, content=PNGS[0])
    assert raw.status_code == 200, raw.text
    form = await http.post("/loss", files=[("file", ("a", PNGS[0]))], data={"label": "3", "gamma": "0.5"})
    assert form.status_code == 200, form.text
    assert raw.json() == as_json
    named = {**as_json, "items": [{**as_json["items"][0], "id": "a"}]}
    assert form.json() == named


async def test_many_files_of_a_form_have_a_label_each(http: httpx.AsyncClient) -> None:
    files = [("file", (f"{k}.png", data)) for k, data in enumerate(PNGS)]
    answer = await http.post("/loss", files=files, data={"label": [str(k) for k in range(8)]})
    want = await loss(http, inputs=[{"image": b64(data), "label": k} for k, data in enumerate(PNGS)])
    assert values(answer.json()) == values(want)
    short = await http.post("/loss", files=files, data={"label": ["1", "2"]})
    assert "8 images need 8 labels, 2 were given" in problem_of(short, 422, "invalid-request")["detail"]


async def test_one_bad_picture_has_its_own_error_and_the_rest_are_scored(http: httpx.AsyncClient) -> None:
    given = [{"image": b64(data), "label": 1} for data in (PNGS[0], b"bad", PNGS[1])]
    answer = await loss(http, inputs=given)
    assert ["error" in item for item in answer["items"]] == [False, True, False]
    assert answer["loss"]["count"] == 2
    assert sorted(item["rank"] for item in answer["items"] if "rank" in item) == [1, 2]


async def test_one_bad_label_refuses_the_whole_batch_and_is_named(http: httpx.AsyncClient) -> None:
    labels = [*LABELS[:17], 10, *LABELS[18:]]
    answer = await http.post("/loss", json={"logits": ROWS.tolist(), "labels": labels})
    found = problem_of(answer, 422, "invalid-request")
    assert "17" in found["errors"][0]["loc"] and "out of range" in found["detail"]


async def test_probabilities_give_the_loss_of_their_logarithms(http: httpx.AsyncClient) -> None:
    p = softmax(ROWS)
    answer = await loss(http, probabilities=p.tolist(), labels=LABELS, **{"from": "probabilities"})
    np.testing.assert_allclose(values(answer), values(await rows(http)), rtol=1e-9)
    edge = await loss(http, probabilities=[[1.0] + [0.0] * 9] * 2, labels=[0, 1])
    assert values(edge)[0] == 0.0
    assert 700.0 < values(edge)[1] < 760.0
    assert edge["items"][1]["clipped"] is True and "clipped" not in edge["items"][0]


async def test_from_refuses_items_that_hold_something_else(http: httpx.AsyncClient) -> None:
    answer = await http.post("/loss", json={"logits": ROWS.tolist(), "labels": LABELS, "from": "probabilities"})
    assert "from" in problem_of(answer, 422, "invalid-request")["detail"]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 5.0, 20.0])
async def test_gamma_and_alpha_of_the_request_come_before_the_cards(http: httpx.AsyncClient, gamma: float) -> None:
    alpha = np.linspace(0.1, 3.0, K)
    answer = await rows(http, gamma=gamma, alpha=alpha.tolist())
    want = softmax_focal(ROWS, np.asarray(LABELS), gamma=gamma, alpha=alpha.tolist()).values
    np.testing.assert_allclose(values(answer), want, rtol=1e-12)
    plain = await rows(http, gamma=gamma)
    assert values(answer, "quality") == values(plain, "quality"), "quality is always scored without alpha"
    np.testing.assert_allclose(values(answer), np.asarray(values(plain)) * alpha[LABELS], rtol=1e-12)


async def test_reductions_divide_the_sum_by_what_they_name(http: httpx.AsyncClient) -> None:
    alpha = np.linspace(0.1, 3.0, K).tolist()
    weight = sum(alpha[label] for label in LABELS)
    for reduction, below, name in (
        ("sum", 1.0, "none"),
        ("mean", 40.0, "samples"),
        ("mean_weighted", weight, "weights"),
    ):
        answer = await rows(http, alpha=alpha, reduction=reduction)
        summary = answer["loss"]
        assert summary["denominator"] == pytest.approx(below, rel=1e-12)
        assert (summary["reduction"], summary["denominator_name"], summary["count"]) == (reduction, name, 40)
        assert summary["sum"] == pytest.approx(sum(values(answer)), rel=1e-12)
        assert summary["mean"] == pytest.approx(summary["sum"] / 40, rel=1e-12)
        assert summary["value"] == pytest.approx(summary["sum"] / below, rel=1e-12)
    none = (await rows(http, reduction="none"))["loss"]
    assert none["value"] is None and none["count"] == 40
    wrong = await http.post("/loss", json={"logits": ROWS.tolist(), "labels": LABELS, "reduction": "batchmean"})
    problem_of(wrong, 422, "invalid-input")


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
async def test_the_gradient_is_the_numerical_derivative(
    http: httpx.AsyncClient, activation: str | None, reduction: str
) -> None:
    logits, labels = ROWS[:3], LABELS[:3]
    options = {"activation": activation, "gamma": 1.5, "label_smoothing": 0.1}
    answer = await rows(http, logits, labels, reduction=reduction, return_gradient=True, **options)
    count = {"sum": 1, "mean": 3 * K if activation == "sigmoid" else 3}[reduction]
    step = 1e-5
    for k, label in enumerate(labels):
        shifted = np.concatenate([logits[k] + step * np.eye(K), logits[k] - step * np.eye(K)])
        moved = np.asarray(values(await rows(http, shifted, [label] * (2 * K), **options)))
        numerical = (moved[:K] - moved[K:]) / (2 * step) / count
        np.testing.assert_allclose(answer["items"][k]["gradient"], numerical, rtol=1e-5, atol=1e-9)


async def test_classes_and_batch_agree_with_the_items(http: httpx.AsyncClient) -> None:
    answer = await rows(http)
    assert sum(one["count"] for one in answer["classes"]) == 40
    total = sum(one["mean_loss"] * one["count"] for one in answer["classes"])
    assert total == pytest.approx(answer["loss"]["sum"], rel=1e-12)
    assert sum(one["issues"] for one in answer["classes"]) == sum(values(answer, "is_issue"))
    names = (await http.get("/models")).json()[0]["labels"]
    assert {one["label"]: one["count"] for one in answer["classes"]} == {
        names[k]: LABELS.count(k) for k in sorted(set(LABELS))
    }


async def test_ranks_order_the_items_by_quality(http: httpx.AsyncClient) -> None:
    items = (await rows(http))["items"]
    by_rank = sorted(items, key=lambda item: int(item["rank"]))
    assert [item["rank"] for item in by_rank] == list(range(1, 41))
    quality = [item["quality"] for item in by_rank]
    assert quality == sorted(quality)
    assert all(0.0 <= one <= 1.0 for one in quality)


async def test_a_clearly_wrong_label_is_an_issue_with_the_right_suggestion(http: httpx.AsyncClient) -> None:
    names = (await http.get("/models")).json()[0]["labels"]
    sure = np.full((2, K), -4.0)
    sure[:, 6] = 8.0
    wrong, right = (await rows(http, sure, [2, 6]))["items"]
    assert (wrong["is_issue"], wrong["suggested_label"], wrong["rank"]) == (True, names[6], 1)
    assert (right["is_issue"], right["suggested_label"], right["rank"]) == (False, None, 2)
    assert wrong["quality"] < 0.05 and right["quality"] > 0.95


async def test_a_label_is_an_index_a_name_or_a_soft_vector(http: httpx.AsyncClient) -> None:
    names = (await http.get("/models")).json()[0]["labels"]
    soft = [0.0] * K
    soft[3] = 1.0
    four = await rows(http, np.tile(ROWS[0], (4, 1)), [3, names[3], [names[3]], soft])
    np.testing.assert_allclose(values(four), values(four)[0], rtol=1e-12)
    mixed = [0.25, 0.75, *[0.0] * 8]
    answer = await rows(http, np.tile(ROWS[0], (3, 1)), [mixed, 0, 1])
    assert values(answer)[0] == pytest.approx(0.25 * values(answer)[1] + 0.75 * values(answer)[2], rel=1e-10)


@pytest.mark.parametrize("index", [10**20, -(10**20), 2**63])
async def test_an_index_to_ignore_beyond_64_bits_is_refused(http: httpx.AsyncClient, index: int) -> None:
    body = {"inputs": [{"logits": [0.0] * 10, "label": index}], "ignore_index": index}
    answer = await http.post("/loss", json=body)
    assert answer.status_code == 422 and "ignore_index" in answer.text


async def test_an_ignored_label_has_no_score_and_counts_nowhere(http: httpx.AsyncClient) -> None:
    answer = await rows(http, labels=[-100, *LABELS[1:]], ignore_index=-100)
    assert answer["items"][0]["loss"] is None and "ignored" in answer["items"][0]["reason"]
    assert "rank" not in answer["items"][0]
    assert answer["loss"]["count"] == 39 and sum(one["count"] for one in answer["classes"]) == 39
    everything = await rows(http, labels=[-100] * 40, ignore_index=-100)
    assert everything["loss"]["value"] is None and everything["loss"]["count"] == 0
    assert everything["classes"] == []


@pytest.mark.parametrize("labels", [["x"], ["tag"], [], [0.5, 1, 0, 0]])
async def test_a_multilabel_model_takes_lists_of_names_and_numbers(multilabel_artifacts: Path, labels: Any) -> None:
    async with running(settings_of(models=multilabel_artifacts, device="cpu")) as http:
        names = (await http.get("/models")).json()[0]["labels"]
        given = [names[1], names[3]] if labels == ["tag"] else labels
        answer = await http.post("/loss", json={"logits": [[1.0, -2.0, 0.5, 3.0]], "labels": [given], "gamma": 0.0})
        if labels == ["x"]:
            problem_of(answer, 422, "invalid-request")
            return
        y = np.asarray(given if labels == [0.5, 1, 0, 0] else [float(name in given) for name in names])
        z = np.asarray([1.0, -2.0, 0.5, 3.0])
        [item] = answer.json()["items"]
        assert item["loss"] == pytest.approx(float((np.log1p(np.exp(-z)) * y + np.log1p(np.exp(z)) * (1 - y)).sum()))


async def test_a_binary_model_has_one_logit_and_two_labels(binary_artifacts: Path) -> None:
    async with running(settings_of(models=binary_artifacts, device="cpu")) as http:
        no, yes = (await http.get("/models")).json()[0]["labels"]
        answer = await loss(http, logits=[[2.0]] * 4, labels=[no, yes, 0, 1], gamma=0.0, alpha=0.25)
        want = [0.75 * np.log1p(np.exp(2.0)), 0.25 * np.log1p(np.exp(-2.0))]
        np.testing.assert_allclose(values(answer), want * 2, rtol=1e-10)
        assert [one["count"] for one in answer["classes"]] == [2, 2]
        assert values(answer, "suggested_label") == [yes, None, yes, None]


async def test_thousands_of_rows_are_scored_in_one_request(http: httpx.AsyncClient) -> None:
    logits = np.random.default_rng(5).normal(size=(20_000, K))
    labels = np.random.default_rng(6).integers(0, K, 20_000)
    began = time.perf_counter()
    answer = await rows(http, logits, labels.tolist())
    assert time.perf_counter() - began < 20.0
    np.testing.assert_allclose(values(answer), softmax_focal(logits, labels, gamma=2.0).values, rtol=1e-12)
    assert sorted(values(answer, "rank")) == list(range(1, 20_001))


async def test_more_rows_than_allowed_are_refused(artifacts: Path) -> None:
    async with running(settings_of(models=artifacts, device="cpu", max_rows=39)) as http:
        answer = await http.post("/loss", json={"logits": ROWS.tolist(), "labels": LABELS})
        problem_of(answer, 413, "too-large")
