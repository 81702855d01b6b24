"""The quality that a card carries: fitted on validation, the same for every batch, and what the service says of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import read_bundle
from models.calibration import focal_inverse, unweighted_probabilities
from models.card import LabelNoise, LossSpec, ModelCard
from models.errors import BundleError
from models.losses import softmax_focal
from models.online import MARGIN, POSTERIOR, fit_label_noise, judge_labels, judge_tags
from scripts import train
from service.schemas import LossOptions
from service.scoring import Given, score_labels
from tests.noisy import average_precision, load
from tests.pictures import draw_folders


def with_noise(folder: Path, **changes: Any) -> ModelCard:
    """The card of a bundle with what stored validation labels tell of noise; its loss is cross-entropy."""
    cell = load("lt_pair_10")
    card = read_bundle(folder).card
    noise = fit_label_noise(cell.p, cell.p, cell.given)
    return card.model_copy(
        update={"label_noise": noise, "loss": card.loss.model_copy(update={"gamma": 0.0}), **changes}
    )


def score(card: ModelCard, rows: np.typing.NDArray[Any], labels: list[Any], kind: Any = "logits") -> dict[str, Any]:
    return score_labels(card, [Given(row, label, kind=kind) for row, label in zip(rows, labels, strict=True)],
                        LossOptions.model_validate({}))  # fmt: skip


@pytest.mark.parametrize("name", ["bal_pair_20", "lt_sym_10"])
def test_what_is_fitted_flags_the_estimated_share_of_validation(name: str) -> None:
    cell = load(name)
    (noise,) = fit_label_noise(cell.p, cell.p, cell.given)
    assert noise.rate == pytest.approx(cell.wrong.mean(), rel=0.15)
    card = ModelCard.model_construct(loss=LossSpec(gamma=0.0), label_noise=[noise])
    quality, other, is_issue = judge_labels(np.log(cell.p), cell.given, card)
    assert is_issue.mean() == pytest.approx(noise.rate, abs=2e-3)
    assert average_precision(quality, cell.wrong) > 0.84
    found = is_issue & cell.wrong
    assert (other[found] == cell.true[found]).mean() > 0.85
    assert (other[~is_issue & (quality >= 0.5)] == -1).all()


def test_too_few_images_or_dishonest_probabilities_leave_the_card_without() -> None:
    cell = load("bal_sym_10")
    assert fit_label_noise(cell.p[:90], cell.p[:90], cell.given[:90]) == []
    sharp = cell.p**3 / (cell.p**3).sum(axis=1, keepdims=True)
    assert fit_label_noise(sharp, sharp, cell.given) == []


def test_focal_bias_and_class_weights_are_undone_exactly() -> None:
    posterior, alpha, gamma = np.array([0.6, 0.3, 0.1]), [0.5, 1.0, 1.5], 2.0
    z = np.zeros(3)
    for _ in range(1_000):  # the logits of least expected loss
        gradient = sum(
            share * softmax_focal(z[None], np.array([k]), gamma=gamma, alpha=alpha).gradient[0]
            for k, share in enumerate(posterior)
        )
        z = z - 2.0 * gradient
    assert unweighted_probabilities(z[None], "softmax", gamma, alpha)[0] == pytest.approx(posterior, abs=1e-4)
    p = np.exp(z) / np.exp(z).sum()
    assert unweighted_probabilities(z[None], "softmax", gamma, None)[0] == pytest.approx(
        focal_inverse(p[None], gamma)[0]
    )


def test_sigmoid_class_weights_are_undone() -> None:
    p = unweighted_probabilities(np.array([[np.log(0.8 * 0.25 / (0.2 * 0.75))]]), "sigmoid", 0.0, 0.25)
    assert p[0, 0] == pytest.approx(0.8)


def test_the_answer_names_the_method_and_without_noise_in_the_card_it_is_the_margin(bundle_folder: Path) -> None:
    rows, labels = np.log(load("lt_pair_10").p[:4]), load("lt_pair_10").given[:4].tolist()
    card = with_noise(bundle_folder)
    ours = score(card, rows, labels)
    assert ours["parameters"]["quality_method"] == POSTERIOR
    assert [item["quality"] for item in ours["items"]] == pytest.approx(judge_labels(rows, np.array(labels), card)[0])
    assert score(read_bundle(bundle_folder).card, rows, labels)["parameters"]["quality_method"] == MARGIN
    other = score_labels(card, [Given(rows[0], 0)], LossOptions.model_validate({"activation": "softmax"}))
    assert other["parameters"]["quality_method"] == MARGIN


def test_probabilities_are_judged_by_the_margin_beside_logits_judged_by_the_posterior(bundle_folder: Path) -> None:
    cell = load("lt_pair_10")
    p, label = cell.p[0] / cell.p[0].sum(), int(cell.given[0])
    card = with_noise(bundle_folder)
    mixed = score_labels(
        card, [Given(np.log(p), label), Given(p, label, kind="probabilities")], LossOptions.model_validate({})
    )  # fmt: skip
    alone = score(card, p[None], [label], "probabilities")
    assert alone["parameters"]["quality_method"] == MARGIN
    assert mixed["items"][1]["quality"] == alone["items"][0]["quality"]
    assert mixed["items"][0]["quality"] == score(card, np.log(p)[None], [label])["items"][0]["quality"]
    assert mixed["parameters"]["quality_method"].startswith(POSTERIOR)


def test_no_quality_depends_on_the_batch_or_its_order(bundle_folder: Path) -> None:
    cell, card = load("lt_pair_10"), with_noise(bundle_folder)
    rows, labels = np.log(cell.p[:60]), cell.given[:60].tolist()
    whole = [item["quality"] for item in score(card, rows, labels)["items"]]
    alone = [score(card, rows[i : i + 1], labels[i : i + 1])["items"][0]["quality"] for i in range(60)]
    back = [item["quality"] for item in score(card, rows[::-1], labels[::-1])["items"]]
    assert alone == whole
    assert back[::-1] == whole


def test_tags_are_judged_each_by_its_own_noise(multilabel_bundle: Path, binary_bundle: Path) -> None:
    def tag(flips: float) -> LabelNoise:
        transition = [[1.0 - flips, flips], [flips, 1.0 - flips]]
        return LabelNoise(temperature=1.0, biases=[0.0, 0.0], transition=transition, rate=flips, threshold=0.05)

    card = read_bundle(multilabel_bundle).card
    card = card.model_copy(update={"label_noise": [tag(0.01), tag(0.1), tag(0.1), tag(0.1)]})
    rows = np.array([[-6.0, -6.0, 6.0, 6.0]])
    quality, wrong = judge_tags(rows, np.array([[True, True, True, True]]), card)
    assert quality[0, 0] > quality[0, 1]  # the same evidence, but tag 0 is hardly ever mislabelled
    assert wrong.tolist() == [[False, True, False, False]] or wrong.tolist() == [[True, True, False, False]]
    item = score(card, rows, [[1.0, 1.0, 1.0, 1.0]])["items"][0]
    assert item["is_issue"] and "long" not in item["suggested_label"]
    yes_no = read_bundle(binary_bundle).card
    yes_no = yes_no.model_copy(update={"label_noise": [tag(0.1)]})
    item = score(yes_no, np.array([[-8.0]]), [1])["items"][0]
    assert item["is_issue"] and item["suggested_label"] == "plain"
    assert not score(yes_no, np.array([[-8.0]]), [0])["items"][0]["is_issue"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"biases": [0.0] * 9}, "9 x 9"),
        ({"transition": [[0.5] * 10] * 10}, "sum to 1"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_a_card_whose_noise_does_not_fit_is_refused(
    bundle_folder: Path, change: dict[str, Any], complaint: str
) -> None:
    document = with_noise(bundle_folder).model_dump(mode="json")
    document["label_noise"][0] |= change
    with pytest.raises(BundleError, match=complaint):
        ModelCard.parse(json.dumps(document), "card.json")


def test_a_card_needs_as_many_parts_as_its_task(multilabel_bundle: Path, bundle_folder: Path) -> None:
    document = read_bundle(multilabel_bundle).card.model_dump(mode="json")
    document["label_noise"] = with_noise(bundle_folder).model_dump(mode="json")["label_noise"]
    with pytest.raises(BundleError, match="hold 4 of 2 classes"):
        ModelCard.parse(json.dumps(document), "card.json")


def test_a_card_from_before_is_still_one(bundle_folder: Path) -> None:
    document = read_bundle(bundle_folder).card.model_dump(mode="json")
    del document["label_noise"]
    assert ModelCard.parse(json.dumps(document), "card.json").label_noise == []


def test_a_training_with_enough_validation_images_stores_the_noise(tmp_path: Path) -> None:
    data = draw_folders(tmp_path / "pictures", per_class=100)
    for k in range(0, 100, 10):  # a tenth of the plain ones is called red
        (data / "plain" / f"plain_{k:03d}.png").rename(data / "red" / f"plain_{k:03d}.png")
    out = tmp_path / "artifacts" / "pictures"
    flags = ["--threads", "1", "--batch-size", "16", "--device", "cpu", "--epochs", "6", "--validation", "0.5"]
    assert train.main([str(data), "--out", str(out), *flags]) == 0
    card = read_bundle(out / "1").card
    (noise,) = card.label_noise
    plain, red = card.labels.index("plain"), card.labels.index("red")
    assert noise.transition[plain][red] == max(noise.transition[j][k] for j in range(3) for k in range(3) if j != k)
    assert 0.0 < noise.rate < 0.15
