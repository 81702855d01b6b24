"""A detector behind /predict, /loss and /v2: every answer is what models.detect says of the graph's own outputs."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from models.boxes import make_anchors
from models.bundle import read_bundle, write_bundle
from models.card import ModelCard
from models.detect import Detection
from models.errors import BundleError
from models.image import load_input
from models.objectlab import objectlab_scores, soft_minimum
from models.task import ScoreOptions
from service.detector import RAW, DetectorEngine, Found, Raw, Wish
from tests.serving import Json, b64, encoded, pictures, problem_of, running, settings_of, write_linear
from tests.wire import binary, error_of, outputs_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
SIZES = [(90, 140), (128, 128), (200, 60), (40, 40), (301, 303)]
FILES = [
    encoded(np.ascontiguousarray(np.kron(pictures(1, 40, seed)[0], np.ones((8, 8, 1), np.uint8))[:h, :w]), "PNG")
    for seed, (h, w) in enumerate(SIZES)
]
BOXES: list[list[Json]] = [
    [{"box": [5, 5, 60, 70], "label": "tops", "id": 7}, {"box": [70, 20, 138, 88], "label": 2}],
    [{"box": [0, 0, 128, 128], "label": "dress"}],
    [],
    [{"box": [3, 3, 30, 36], "label": "trouser"}, {"box": [0, 0, 20, 20], "label": "tops", "iscrowd": 1}],
    [{"box": [10.5, 20.25, 200, 290], "label": 1, "id": "x"}, {"box": [-20, -20, 40, 40], "label": 0}],
]
OPTIONS = ScoreOptions(gamma=2.0, alpha=None)
TASK = Detection()


@pytest.fixture(scope="module")
def engine(detector_artifacts: Path) -> DetectorEngine:
    return DetectorEngine(read_bundle(detector_artifacts / "scenes" / "1"), "cpu", 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(detector_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[httpx.AsyncClient]:
    root = tmp_path_factory.mktemp("both")
    write_linear(root)
    (root / "scenes").symlink_to(detector_artifacts / "scenes")
    async with running(settings_of(models=root, device="cpu", default_model="scenes", runs=2)) as client:
        yield client


def look(engine: DetectorEngine, data: bytes, wish: Wish) -> Any:
    return engine.run([load_input(data, engine.card.input)], wish)[0]


def dense(raw: Raw) -> np.ndarray[Any, Any]:
    return raw.cls_logits.rows(np.arange(raw.cls_logits.shape[0]))


def same_boxes(items: list[Json], found: Found, card: ModelCard) -> None:
    assert [item["label"] for item in items] == [card.labels[k] for k in found.detections.labels]
    assert np.allclose([item["box"] for item in items] or np.zeros((0, 4)), found.detections.xyxy, atol=1e-3)
    assert np.allclose([item["score"] for item in items], found.detections.scores, atol=1e-5)


@pytest.mark.parametrize("k", range(len(FILES)))
async def test_an_image_is_answered_in_its_own_pixels(http: httpx.AsyncClient, engine: DetectorEngine, k: int) -> None:
    answer = await http.post("/predict?score_threshold=0.2", content=FILES[k])
    assert answer.status_code == 200, answer.text
    item = answer.json()["predictions"][0]
    height, width = SIZES[k]
    assert (item["width"], item["height"]) == (width, height)
    found = look(engine, FILES[k], Wish(0.2, engine.spec.iou_threshold, engine.spec.max_detections))
    assert len(item["boxes"]) > 0
    same_boxes(item["boxes"], found, engine.card)
    boxes = np.array([box["box"] for box in item["boxes"]])
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert all(name in answer.headers["server-timing"] for name in ("decode", "queue", "infer", "encode"))


async def test_each_request_has_its_own_thresholds_though_they_come_together(
    http: httpx.AsyncClient, engine: DetectorEngine
) -> None:
    import asyncio

    wishes = [Wish(score, iou, most) for score in (0.1, 0.3, 1.0) for iou in (0.2, 0.7) for most in (1, 20)]

    async def ask(wish: Wish, k: int) -> None:
        query = {"score_threshold": wish.score, "iou_threshold": wish.iou, "max_detections": wish.most}
        answer = await http.post("/predict", params=query, content=FILES[k])
        items = answer.json()["predictions"][0]["boxes"]
        same_boxes(items, look(engine, FILES[k], wish), engine.card)
        assert len(items) <= wish.most and all(item["score"] > wish.score for item in items)

    await asyncio.gather(*(ask(wish, k) for wish in wishes for k in range(len(FILES))))


async def test_many_images_a_broken_one_among_them(http: httpx.AsyncClient) -> None:
    inputs = [{"image": b64(data), "id": str(k)} for k, data in enumerate(FILES)]
    inputs.insert(2, {"image": b64(FILES[0][:50]), "id": "cut"})
    together = (await http.post("/predict", json={"inputs": inputs})).json()["predictions"]
    assert together[2]["id"] == "cut" and together[2]["error"]["status"] == 422
    for item in together[:2] + together[3:]:
        alone = (await http.post("/predict", content=FILES[int(item["id"])])).json()["predictions"][0]
        assert [box["label"] for box in item["boxes"]] == [box["label"] for box in alone["boxes"]]
        assert np.allclose([b["score"] for b in item["boxes"]], [b["score"] for b in alone["boxes"]], atol=1e-5)


async def test_given_boxes_are_scored_as_models_detect_does(http: httpx.AsyncClient, engine: DetectorEngine) -> None:
    inputs = [{"image": b64(data), "boxes": boxes} for data, boxes in zip(FILES, BOXES, strict=True)]
    answer = await http.post("/loss", json={"inputs": inputs, "max_missing": 5})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["parameters"]["quality_method"] == "focal mean"
    for data, boxes, item in zip(FILES, BOXES, body["items"], strict=True):
        raw = look(engine, data, RAW)
        assert isinstance(raw, Raw)
        labels = TASK.targets(boxes, engine.card)
        want = TASK.score(raw.cls_logits, raw.box_deltas, labels, raw.geometry, engine.card, OPTIONS)
        assert item["loss"] == pytest.approx(want.loss.value, rel=1e-4)
        assert item["positives"] == want.loss.positives
        assert len(item["missing"]) == min(5, len(want.missing.scores))
        for k, box in enumerate(item["boxes"]):
            assert box.get("id") == labels.ids[k]
            if not want.valid[k]:
                assert box["loss"] is None and box["reason"]
                continue
            assert box["loss"] == pytest.approx(want.losses[k], rel=1e-4)
            assert box["quality"] == pytest.approx(want.quality[k], rel=1e-3)
            assert box["causes"]["badly_located"] == pytest.approx(want.causes[k, 1], abs=1e-4)
    ranks = [box["rank"] for item in body["items"] for box in item["boxes"] if "rank" in box]
    assert sorted(ranks) == list(range(1, len(ranks) + 1))
    assert body["loss"]["count"] == len(FILES)
    assert body["loss"]["value"] == pytest.approx(np.mean([item["loss"] for item in body["items"]]))


@pytest.mark.parametrize("batch", [1, 2, 5])
async def test_an_images_scores_do_not_depend_on_its_mates(http: httpx.AsyncClient, batch: int) -> None:
    inputs = [{"image": b64(data), "boxes": boxes} for data, boxes in zip(FILES, BOXES, strict=True)]
    whole = (await http.post("/loss", json={"inputs": inputs})).json()["items"]
    for at in range(0, len(inputs), batch):
        part = (await http.post("/loss", json={"inputs": inputs[at : at + batch]})).json()["items"]
        for one, other in zip(part, whole[at : at + batch], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            for first, second in zip(one["boxes"], other["boxes"], strict=True):
                assert first.get("quality") == pytest.approx(second.get("quality"), abs=1e-5)


async def test_raw_arrays_in_the_body_are_scored_in_pixels_of_the_input(
    http: httpx.AsyncClient, engine: DetectorEngine
) -> None:
    raw = look(engine, FILES[1], RAW)
    item = {"boxes": BOXES[1], "cls_logits": dense(raw).tolist(), "box_deltas": raw.box_deltas.tolist()}
    rows = (await http.post("/loss", json={"inputs": [item]})).json()
    image = (await http.post("/loss", json={"inputs": [{"image": b64(FILES[1]), "boxes": BOXES[1]}]})).json()
    assert rows["items"][0]["loss"] == pytest.approx(image["items"][0]["loss"], rel=1e-4)
    item["cls_logits"] = item["cls_logits"][:5]
    problem = problem_of(await http.post("/loss", json={"inputs": [item]}), 422, "invalid-request")
    assert problem["detail"].startswith("inputs.0: cls_logits and box_deltas")


async def test_a_form_with_boxes_as_json(http: httpx.AsyncClient) -> None:
    files = [("file", (str(k), data, "image/png")) for k, data in enumerate(FILES)]
    answer = await http.post("/loss", files=files, data={"label": [json.dumps(boxes) for boxes in BOXES]})
    assert all(name in answer.headers["server-timing"] for name in ("decode", "queue", "infer", "encode"))
    assert answer.status_code == 200, answer.text
    assert [len(item["boxes"]) for item in answer.json()["items"]] == [len(boxes) for boxes in BOXES]
    for label in ("tops", "5", "true", "null", "{}", "[5]"):
        answer = await http.post("/loss", files=files[:1], data={"label": [label]})
        assert "give boxes as JSON" in problem_of(answer, 422, "invalid-request")["detail"], label


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"boxes": [{"box": [9, 9, 3, 30], "label": 0}]}, "inputs.0.boxes.0.box: the corners are swapped"),
        ({"boxes": [{"box": [1, 1, 3, 30], "label": "cat"}]}, "inputs.0.boxes.0.label"),
        ({"boxes": [{"box": [1, 1, 3], "label": 0}]}, "inputs.0.boxes.0.box: a box is four numbers"),
        ({"boxes": [{"box": [1, 1, 3, 30]}]}, "inputs.0.boxes.0.label: is missing"),
        ({"boxes": [{"box": [1, 1, 1, 30], "label": 0}]}, "has no area"),
        ({"label": 0}, "give boxes, not a label"),
        ({"label": 0, "boxes": []}, "exactly one of label, boxes"),
        ({}, "exactly one of label, boxes"),
    ],
)
async def test_boxes_that_do_not_fit_are_named(http: httpx.AsyncClient, item: Json, words: str) -> None:
    answer = await http.post("/loss", json={"inputs": [{"image": b64(FILES[0]), **item}]})
    assert words in problem_of(answer, 422, "invalid-request")["detail"]


async def test_an_id_that_no_answer_can_repeat_is_refused(http: httpx.AsyncClient) -> None:
    item = {"image": b64(FILES[0]), "boxes": [{"box": [1, 1, 9, 30], "label": 0, "id": "\ud800"}]}
    body = json.dumps({"inputs": [item]})
    answer = await http.post("/loss", content=body, headers={"content-type": "application/json"})
    assert "inputs.0.boxes.0.id" in problem_of(answer, 422, "invalid-request")["detail"]


async def test_too_many_boxes_are_refused_before_they_are_scored(http: httpx.AsyncClient) -> None:
    item = {"image": b64(FILES[0]), "boxes": [{"box": [1, 1, 9, 9], "label": 0}] * 5001}
    problem = problem_of(await http.post("/loss", json={"inputs": [item]}), 413, "too-large")
    assert "inputs.0.boxes" in problem["detail"]


async def test_a_box_outside_the_picture_is_that_pictures_error(http: httpx.AsyncClient) -> None:
    outside = {"image": b64(FILES[3]), "boxes": [{"box": [100, 0, 120, 30], "label": 0}]}
    good = {"image": b64(FILES[0]), "boxes": BOXES[0]}
    items = (await http.post("/loss", json={"inputs": [good, outside]})).json()["items"]
    assert "error" not in items[0] and "outside the picture" in items[1]["error"]["detail"]
    assert (
        "outside the picture"
        in problem_of(await http.post("/loss", json={"inputs": [outside]}), 422, "invalid-label")["detail"]
    )


@pytest.mark.parametrize("options", [{"reduction": "batchmean"}, {"return_gradient": True}, {"activation": "softmax"}])
async def test_options_without_meaning_for_boxes_are_refused(http: httpx.AsyncClient, options: Json) -> None:
    item = {"boxes": [], "cls_logits": [[0.0]], "box_deltas": [[0.0]]}
    problem_of(await http.post("/loss", json={"inputs": [item], **options}), 422, "invalid-request")


async def test_objectlabs_scores_come_where_they_are_asked_for(http: httpx.AsyncClient, engine: DetectorEngine) -> None:
    spec, detector = engine.card.input, engine.card.detector
    assert detector is not None
    anchors = make_anchors(detector, spec.height, spec.width)
    logits = np.full((len(anchors), 3), -9.0)
    middle = anchors.mean(axis=1)
    sure = [int(np.argmin(abs(middle - place))) for place in (40.0, 80.0)]
    logits[sure[0], 0], logits[sure[1], 1] = 5.0, 4.0  # all that is seen: tops and trouser
    tops, trouser = anchors[sure].tolist()
    boxes = [
        {"box": tops, "label": "tops"},
        {"box": [tops[0] + 5, tops[1] + 5, tops[2], tops[3]], "label": "tops"},
        {"box": trouser, "label": "dress"},
        {"box": trouser, "label": "dress", "iscrowd": True},
    ]
    raw = {"cls_logits": logits.tolist(), "box_deltas": np.zeros_like(anchors).tolist(), "boxes": boxes}
    plain = (await http.post("/loss", json={"inputs": [raw]})).json()["items"][0]
    item = (await http.post("/loss", json={"inputs": [raw], "objectlab": True})).json()["items"][0]
    lab, rows = item.pop("objectlab"), [box.pop("objectlab", None) for box in item["boxes"]]
    assert item == plain, "nothing else changes"
    given = np.array([box["box"] for box in boxes[:3]])
    p = 1.0 / (1.0 + np.exp([-5.0, -4.0]))
    want = objectlab_scores(given, np.array([0, 0, 2]), [tops, trouser], np.array([0, 1]), p, (spec.width, spec.height))
    assert rows[3] is None
    assert [row["badly_located"] for row in rows[:3]] == pytest.approx(want.badly_located)
    assert [row["swapped"] for row in rows[:3]] == pytest.approx(want.swapped)
    assert rows[0]["badly_located"] > 0.99 > 0.9 > rows[1]["badly_located"] and rows[2]["swapped"] < 0.01
    assert lab == pytest.approx({
        "score": want.image,
        "overlooked": soft_minimum(want.overlooked),
        "badly_located": soft_minimum(want.badly_located),
        "swapped": soft_minimum(want.swapped),
    })  # fmt: skip
    refused = {"model": "linear", "objectlab": True, "inputs": [{"image": b64(FILES[0]), "label": 0}]}
    assert "no detector" in problem_of(await http.post("/loss", json=refused), 422, "invalid-request")["detail"]


async def test_each_kind_of_model_refuses_the_others_options(http: httpx.AsyncClient) -> None:
    for query, name in (("top_k=2", "top_k"), ("model=linear&score_threshold=0.5", "score_threshold")):
        answer = await http.post(f"/predict?{query}", content=FILES[0])
        assert name in problem_of(answer, 422, "invalid-request")["detail"]
    body = {"model": "linear", "inputs": [{"image": b64(FILES[0]), "boxes": []}]}
    assert "is a classifier" in problem_of(await http.post("/loss", json=body), 422, "invalid-request")["detail"]


async def test_the_open_inference_protocol(http: httpx.AsyncClient, engine: DetectorEngine) -> None:
    metadata = (await http.get("/v2/models/scenes")).json()
    assert [one["name"] for one in metadata["inputs"]] == ["image"]
    names = {"cls_logits", "box_deltas", "boxes", "scores", "classes", "image_index"}
    assert {one["name"] for one in metadata["outputs"]} == names
    inputs = np.stack([load_input(data, engine.card.input).pixels for data in FILES])
    body, headers = binary({"parameters": {"score_threshold": 0.3, "binary_data_output": True}}, image=inputs)
    outputs = outputs_of(await http.post("/v2/models/scenes/infer", content=body, headers=headers))
    assert set(outputs) == {"boxes", "scores", "classes", "image_index"}
    for k, pixels in enumerate(inputs):
        feeds = {"image": pixels[None], "score_threshold": np.array([0.3], np.float32)}
        boxes = engine.runtime.run(feeds, ["boxes"])[0]
        assert np.allclose(outputs["boxes"][outputs["image_index"] == k], boxes, atol=1e-2)
    wanted = [{"name": "cls_logits", "parameters": {"binary_data": True}}]
    body, headers = binary({"outputs": wanted}, image=inputs)
    outputs = outputs_of(await http.post("/v2/models/scenes/infer", content=body, headers=headers))
    assert np.allclose(outputs["cls_logits"][3], dense(look(engine, FILES[3], RAW)), atol=1e-4)
    body, headers = binary({"parameters": {"score_threshold": 3}}, image=inputs[:1])
    assert "score_threshold" in error_of(await http.post("/v2/models/scenes/infer", content=body, headers=headers))


async def test_detected_boxes_and_label_losses_are_counted(http: httpx.AsyncClient) -> None:
    await http.post("/predict?score_threshold=0.2", content=FILES[0])
    await http.post("/loss", json={"inputs": [{"image": b64(FILES[0]), "boxes": BOXES[0]}]})
    text = (await http.get("/metrics")).text
    assert 'focalserve_predictions_total{label="' in text and 'model="scenes"' in text
    assert 'focalserve_label_loss_count{label="tops",model="scenes",version="1"}' in text


async def test_a_card_that_is_not_the_graphs_is_refused(detector_artifacts: Path, tmp_path: Path) -> None:
    bundle = read_bundle(detector_artifacts / "scenes" / "1")
    golden = bundle.card.golden.model_copy(update={"deltas": [9.0, 9.0, 9.0, 9.0]})
    other = bundle.card.model_copy(update={"golden": golden})
    folder = write_bundle(tmp_path / "scenes", other, bundle.graph, bundle.loss_graph)
    with pytest.raises(BundleError, match="golden"):
        DetectorEngine(read_bundle(folder), "cpu", 1)
