"""Training a detector on composed scenes of real garments: from the files to a bundle, and what it is refused for."""

import csv
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.boxes import BoxLabels
from models.card import ImageInput
from models.errors import InvalidInput
from models.fit import locate
from models.image import decode_image, load_input
from models.nets.graphs import open_session
from models.nets.norms import FrozenBatchNorm2d
from scripts import train, training
from scripts.box_data import BoxSample
from scripts.checkpoint import load_checkpoint
from scripts.config import TrainConfig, choose_task, parse_config
from scripts.detector import BoxParts, DetectorJob, choose_anchors, place_boxes
from scripts.interrupts import Interrupted, Interrupts
from scripts.job import build_job, read_parts
from scripts.label_checks import fit_label_checks
from tests.by_heart import FAST, ByHeart, write_some
from tests.conftest import noise, png
from tests.pictures import draw_folders


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_some(tmp_path_factory.mktemp("few") / "scenes", 12)


def settings(data: Path, out: Path, *flags: str) -> TrainConfig:
    return choose_task(parse_config([str(data), "--out", str(out), *FAST, *flags]))


def job_of(data: Path, out: Path, *flags: str) -> DetectorJob:
    torch.set_num_threads(1)
    config = settings(data, out, *flags)
    job = build_job(config, read_parts(config), torch.device("cpu"))
    assert isinstance(job, DetectorJob)
    return job


@pytest.mark.slow
def test_a_few_scenes_are_learnt_by_heart(by_heart: ByHeart) -> None:
    card = by_heart.bundle.card
    assert card.metrics["ap50"].value > 0.3  # untrained: .01
    assert (card.task, card.labels) == ("detection", ["tops", "trouser", "dress", "shoes", "bag"])
    assert (card.input.height, card.input.width, card.loss.gamma, card.loss.alpha) == (64, 64, 2.0, 0.5)
    assert all(facts.train_count == facts.validation_count for facts in card.classes)
    assert card.parity_max_difference <= 1e-4
    assert card.training["epochs"] == 25 and len(card.data_fingerprint) == 64


@pytest.mark.slow
def test_the_bundles_detections_are_those_that_were_measured(by_heart: ByHeart) -> None:
    card, session = by_heart.bundle.card, open_session(by_heart.bundle.graph)
    files = sorted((by_heart.data.parent / "images").glob("val_*.png"))
    images = np.stack([load_input(file.read_bytes(), card.input).pixels for file in files])
    scores, classes = session.run(["scores", "classes"], {"image": images})
    assert card.detector is not None and (scores > card.detector.score_threshold).all()
    assert len(scores) > 20
    for k, facts in enumerate(card.classes):
        if facts.recall is not None and facts.precision:
            assert (classes == k).sum() == pytest.approx(facts.recall * facts.validation_count / facts.precision, abs=1)


@pytest.mark.slow
def test_the_card_can_judge_labels(by_heart: ByHeart) -> None:
    detector = by_heart.bundle.card.detector
    assert detector is not None and detector.calibrator is not None
    assert detector.calibrator.causes == ["none", "badly_located", "swapped", "spurious"]
    assert detector.missing_calibrator is not None and detector.missing_calibrator.causes == ["none", "missing"]
    assert np.trace(np.array(detector.confusion)) > 2.0  # by chance: 1


@pytest.mark.slow
def test_a_picture_of_the_best_weights_is_left_in_the_run(by_heart: ByHeart) -> None:
    drawn = decode_image((by_heart.out / "run" / "validation.png").read_bytes())
    green = (np.abs(drawn.astype(int) - [60, 190, 60]).max(axis=2) < 10).sum()
    assert green > 1000


def last(out: Path) -> dict[str, Any]:
    state = load_checkpoint(out / "run" / "last.pt")
    assert state is not None
    return state


class StopAfter(Interrupts):
    """Asks to stop after a number of steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(signal.SIGINT)


def test_a_training_stopped_within_an_epoch_resumes_to_the_bit(few: Path, tmp_path: Path) -> None:
    flags = ["--epochs", "2", "--batch-size", "4", "--multi-scale", "0.2"]
    job = job_of(few, tmp_path / "whole", *flags)
    job.folder.mkdir(parents=True)
    training.fit(job, training.Progress(), Interrupts())
    stopped = job_of(few, tmp_path / "parts", *flags)
    stopped.folder.mkdir(parents=True)
    with pytest.raises(Interrupted):
        training.fit(stopped, training.Progress(), StopAfter(2))
    assert last(tmp_path / "parts")["progress"]["batch"] == 2
    again = job_of(few, tmp_path / "parts", *flags, "--resume")
    training.fit(again, training.restore(again), Interrupts())
    one, other = last(tmp_path / "whole")["model"], last(tmp_path / "parts")["model"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_kept_matches_give_the_same_loss(few: Path, tmp_path: Path) -> None:
    job = job_of(few, tmp_path / "m")
    indices = np.arange(8)
    pixels = job.train_store.take(indices)
    first = [float(job.batch_loss(indices, pixels, (0, epoch, 0)).detach()) for epoch in range(4)]
    assert len({position for position, _ in job.found}) == 8 and 8 < len(job.found) <= 16
    again = [float(job.batch_loss(indices, pixels, (0, epoch, 0)).detach()) for epoch in range(4)]
    fresh = replace(job, found={})
    alone = float(fresh.batch_loss(indices, pixels, (0, 3, 0)).detach())
    assert again == pytest.approx(first, rel=1e-5) and alone == pytest.approx(first[3], rel=1e-5)


def test_the_task_follows_from_the_data_and_what_is_said_wins(few: Path, tmp_path: Path) -> None:
    config = settings(few, tmp_path / "m")
    assert (config.task, config.alpha, config.monitor, config.clip_grad) == ("detection", 0.5, "ap", 10.0)
    said = settings(few, tmp_path / "m", "--alpha", "0.25", "--monitor", "ap50")
    assert (said.alpha, said.monitor) == (0.25, "ap50")
    photos = settings(draw_folders(tmp_path / "photos", per_class=2), tmp_path / "m")
    assert (photos.task, photos.alpha, photos.monitor) == ("auto", "class-balanced", "macro_f1")


def changed(few: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The few scenes beside their pictures, with another list of annotations."""
    shutil.copytree(few.parent, folder)
    document = json.loads(few.read_text())
    change(document)
    (folder / few.name).write_text(json.dumps(document))
    return folder / few.name


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("train", "; add samples or drop the label"),
        ("val", "no validation image has a box that counts, so there is nothing to measure precision with"),
    ],
)
@pytest.mark.parametrize("crowds", [True, False], ids=["crowds", "no boxes"])
def test_a_part_without_boxes_is_refused_before_the_training(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, message: str, crowds: bool
) -> None:
    def change(document: dict[str, Any]) -> None:
        emptied = {one["id"] for one in document["images"] if one["split"] == part}
        rest = [one for one in document["annotations"] if one["image_id"] not in emptied]
        away = [one | {"iscrowd": 1} for one in document["annotations"] if one["image_id"] in emptied]
        document["annotations"] = [*rest, *(away if crowds else [])]

    data = changed(few, tmp_path / "data", change)
    assert train.main([str(data), "--out", str(tmp_path / "m"), *FAST]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "m").exists()


def test_all_that_is_left_out_is_listed_with_the_run(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(document: dict[str, Any]) -> None:
        whole = document["annotations"][0]
        document["annotations"] += [whole | {"id": 9000 + k, "bbox": [1, 1, 0, 5]} for k in range(12)]

    data = changed(few, tmp_path / "data", change)
    flags = [*FAST, "--on-bad-box", "drop", "--weights", "absent.pt"]  # so that it ends where the training would begin
    assert train.main([str(data), "--out", str(tmp_path / "m"), *flags]) == 2
    shown = capsys.readouterr().err
    assert shown.count("  left out: ") == 8 and "  and 4 more; left_out.csv" in shown
    rows = list(csv.DictReader((tmp_path / "m" / "run" / "left_out.csv").read_text().splitlines()))
    assert [row["where"].split()[-1] for row in rows] == [str(9000 + k) for k in range(12)]
    assert all(row["why"].startswith("no area") for row in rows)


def test_sizes_that_do_not_suit_the_boxes_are_answered_with_some_that_do(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(few), "--out", str(tmp_path / "m"), *FAST, "--dry-run", "--anchor-sizes"]
    assert train.main([*command, "500,600"]) == 0
    shown = capsys.readouterr().err
    assert "anchors of 500, 600 pixels; no anchor reaches IoU 0.5 for 100.0%" in shown
    proposed = re.search(r"proposed: --anchor-sizes ([\d,]+), with which that is so for ([\d.]+)%", shown)
    assert proposed is not None and float(proposed[2]) < 60.0
    assert train.main([*command, proposed[1]]) == 0
    shown = capsys.readouterr().err
    assert f"for {proposed[2]}%" in shown and "proposed:" not in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "balanced"], "--alpha of a detector is none or a number"),
        (["--alpha", "balanced", "--dry-run"], "--alpha of a detector is none or a number"),
        (["--monitor", "nll"], "--monitor nll is not of this task; use one of ap, ap50"),
        (["--resize", "center_crop"], "center_crop cuts boxes off"),
        (["--anchor-sizes", "8,16,32"], "3 sizes cannot be dealt out to 2 levels"),
        (["--net", "vgg"], "unknown network 'vgg'"),
        (["--weights", "absent.pt"], "absent.pt cannot be opened"),
    ],
)
def test_bad_input_is_two_lines_and_exit_code_2(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert train.main([str(few), "--out", str(tmp_path / "m"), *FAST, *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert shown.splitlines()[-1] == "help: focalserve train --help"


def test_a_classifier_is_not_watched_by_average_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = draw_folders(tmp_path / "photos", per_class=2)
    assert train.main([str(photos), "--out", str(tmp_path / "m"), *FAST, "--monitor", "ap"]) == 2
    assert "use one of macro_f1, nll" in capsys.readouterr().err


def test_a_dry_run_shows_boxes_and_anchors(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(few), "--out", str(tmp_path / "m"), *FAST, "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert "detection, 12 training and 12 validation images" in shown and "no anchor reaches IoU 0.5 for" in shown
    assert "task: detection" in shown and "2 batches of (64, 64, 3)" in shown
    assert not (tmp_path / "m").exists()


def test_the_anchors_are_those_of_two_proposals_that_reach_more_boxes(few: Path, tmp_path: Path) -> None:
    config = settings(few, tmp_path / "m", "--anchor-ratios", "1", "--net", "mobilenet_v2")
    spec, rng = ImageInput(height=128, width=128), np.random.default_rng(0)

    def chosen(config: TrainConfig, sides: list[float]) -> list[float]:
        corners = rng.integers(0, 60, (len(sides), 2))
        boxes = np.concatenate([corners, corners + np.array(sides)[:, None]], axis=1).astype(np.float64)
        given = BoxLabels(boxes, np.zeros(len(sides), np.int64), np.zeros(len(sides), bool), (None,) * len(sides))
        found = choose_anchors(config, spec, [BoxSample(tmp_path, given, "", 128, 128)])
        return [size for level in found.levels for size in level.sizes]

    assert chosen(config, [25.0] * 40) == [25.0, 26.0, 27.0, 28.0, 29.0, 30.0]
    # Quantiles put half of their sizes on grids of 16 and 32 pixels, between whose cells many such boxes are lost.
    assert chosen(config, np.geomspace(12.0, 50.0, 80).tolist()) == [16.0, 22.0, 32.0, 45.0, 64.0, 90.0]
    said = settings(few, tmp_path / "m", "--anchor-sizes", "9,10,11,12")
    assert chosen(said, [27.0] * 40) == [9.0, 10.0, 11.0, 12.0]


def test_published_weights_are_learnt_slowly_with_constant_norms(few: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    torch.save(dict(job_of(few, tmp_path / "m").served.net.state_dict()), weights)
    job = job_of(few, tmp_path / "m", "--weights", str(weights), "--freeze", "1")
    assert any(isinstance(module, FrozenBatchNorm2d) for module in job.served.modules())
    frozen = {name for name, p in job.served.net.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("backbone.body.stem") for name in frozen)
    learning = {id(p): group["share"] for group in job.optimizer.param_groups for p in group["params"]}
    for name, p in job.served.net.named_parameters():
        share = 0.3 if name.startswith("backbone.body") else 1.0
        assert learning.get(id(p)) == (None if name in frozen else share), name


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(50, 90), (300, 111), (64, 64), (7, 1)])
def test_boxes_go_where_the_picture_goes(resize: str, height: int, width: int) -> None:
    spec = ImageInput.model_validate({"height": 64, "width": 96, "resize": resize})
    fitted = load_input(png(noise(height, width)), spec)
    scale, offset = locate(width, height, spec)
    assert scale == pytest.approx(fitted.scale) and offset == fitted.offset


def test_boxes_are_placed_in_input_pixels(few: Path, tmp_path: Path) -> None:
    config = settings(few, tmp_path / "m", "--image-size", "128x32")
    parts = read_parts(config)
    assert isinstance(parts, BoxParts) and parts.spec.resize == "letterbox"
    sample: BoxSample = parts.train[0]
    placed = place_boxes(sample, parts.spec)
    assert placed.xyxy == pytest.approx(sample.boxes.xyxy * 0.5 + [0, 48, 0, 48])


def test_too_few_boxes_give_confusion_but_no_calibrator(few: Path, tmp_path: Path) -> None:
    job = job_of(few, tmp_path / "m")
    assert sum(len(boxes) for boxes in job.val_boxes) < 50
    classes = len(job.parts.data.labels)
    got = fit_label_checks(job.parts.detector, job.served, job.val_store, job.val_boxes, classes, job.device)
    assert got.calibrator is None and got.missing_calibrator is None
    assert np.array(got.confusion).sum(axis=1) == pytest.approx(np.ones(classes))


def test_center_crop_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="center_crop"):
        locate(10, 10, ImageInput(height=8, width=8, resize="center_crop"))
