"""The claim about the prior: what each variant starts with, and that the table says it."""

import math

import pytest
import torch

from models.card import LossSpec
from models.nets.detectors import build_detector, plan_of
from scripts.items import embedded_items, merge_items
from scripts.prior_claim import VARIANTS, Variant, forget_prior, main, try_variant
from scripts.scenes import Scenes, compose_scenes


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return compose_scenes(merge_items(embedded_items("train")), 16, 0)


def test_without_the_prior_every_class_starts_at_one_half() -> None:
    net = build_detector("small", 2, plan_of("small").spec()).eval()
    image = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        before = net(image)[0].sigmoid().mean()
        forget_prior(net)
        after = net(image)[0].sigmoid().mean()
    assert float(before) == pytest.approx(0.01, rel=0.2)
    assert float(after) == pytest.approx(0.5, rel=0.05)


def test_the_prior_and_focal_loss_make_the_first_loss_small(scenes: Scenes) -> None:
    bare, prior, focal = (try_variant(one, scenes, scenes, 1, 0) for one in VARIANTS[:3])
    assert bare.first_loss > 10 * prior.first_loss > 20 * focal.first_loss
    assert bare.first_norm > 10 * prior.first_norm > 20 * focal.first_norm


def test_the_same_seed_gives_the_same_outcome(scenes: Scenes) -> None:
    assert try_variant(VARIANTS[5], scenes, scenes, 2, 3) == try_variant(VARIANTS[5], scenes, scenes, 2, 3)


def test_a_training_that_diverges_is_a_row_and_no_error(scenes: Scenes) -> None:
    wild = Variant("wild", LossSpec(gamma=0.0, alpha=None), prior=False, adam=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.prior_claim._BOX_WEIGHT", 1e38)
        outcome = try_variant(wild, scenes, scenes, 3, 0)
    assert not math.isfinite(outcome.last_loss) and outcome.ap50 == 0.0


@pytest.mark.slow
def test_the_table_has_a_row_for_each_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "1", "--scenes", "16", "--val", "2"]) == 0
    told = capsys.readouterr().out
    assert all(f"| {variant.name} |" in told for variant in VARIANTS)
