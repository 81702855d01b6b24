"""The audit of labels on real images with injected noise: bars, guard, tags, and what must not matter."""

import numpy as np
import pytest

from models.audit import audit_labels, audit_tags, check_calibration, lowest
from models.noise import posterior
from models.quality import worst_dominates
from scripts.decisions import SURE
from tests.noisy import CELLS, Bools, Cell, Floats, Indices, average_precision, load, load_uncalibrated, synthesize

CLEAN_CELLS = [name for name in CELLS if name.endswith("_5")]


def f1(flagged: Bools, wrong: Bools) -> float:
    return float(2 * (flagged & wrong).sum() / (flagged.sum() + wrong.sum()))


def label_f1(labels: Indices, true: Indices) -> Floats:
    """F1 of each class, (K,), of labels as if they were predictions of the true ones."""
    right = np.bincount(true[labels == true], minlength=10)
    return np.asarray(2 * right / (np.bincount(labels, minlength=10) + np.bincount(true, minlength=10)))


def rare(cell: Cell) -> Bools:
    """Which images are of the rarer half of the classes."""
    counts = np.bincount(cell.true)
    return np.asarray(counts[cell.true] <= np.median(counts))


def without_wrong(cell: Cell) -> Cell:
    right = ~cell.wrong
    return Cell(cell.p[right], cell.in_fold[right], cell.given[right], cell.true[right])


def test_the_bars_hold_on_thirteen_kinds_of_noise() -> None:
    plain, full, scores, suggestions = [], [], [], []
    for name in CELLS:
        cell = load(name)
        online, audit = audit_labels(cell.p, cell.given), audit_labels(cell.p, cell.given, cell.in_fold)
        plain.append(average_precision(online.quality, cell.wrong))
        full.append(average_precision(audit.quality, cell.wrong))
        scores.append(f1(audit.is_issue, cell.wrong))
        found = audit.is_issue & cell.wrong
        suggestions.append((audit.suggested[found] == cell.true[found]).mean())
        assert audit.guard.passed
        assert audit.is_issue.sum() == round(audit.noise.wrong)
    assert np.mean(plain) >= 0.873
    assert np.mean(full) >= 0.892
    assert np.mean(scores) >= 0.82
    assert np.mean(suggestions) >= 0.90


def test_sure_suggestions_are_right_and_leave_every_class_its_members() -> None:
    precisions, gains = [], []
    for name in CELLS:
        cell = load(name)
        audit = audit_labels(cell.p, cell.given, cell.in_fold)
        sure = audit.is_issue & (audit.p_suggested >= SURE)
        corrected = np.where(sure, audit.suggested, cell.given)
        before, after = label_f1(cell.given, cell.true), label_f1(corrected, cell.true)
        precisions.append((corrected[sure] == cell.true[sure]).mean())
        gains.append(after.mean() - before.mean())
        assert (after >= before - 0.001).all()
        for k in range(10):
            held = (cell.given == k) & (cell.true == k)
            assert (corrected[held] == k).mean() >= 0.8
    assert np.mean(precisions) >= 0.94 and min(precisions) >= 0.88
    assert np.mean(gains) >= 0.048 and min(gains) >= 0.019


def test_the_probability_of_the_suggestions_is_how_often_they_are_right() -> None:
    said, true = [], []
    for name in CELLS:
        cell = load(name)
        audit = audit_labels(cell.p, cell.given, cell.in_fold)
        issues = audit.is_issue
        assert ((audit.p_suggested >= 0.0) & (audit.p_suggested <= 1.0)).all() and (
            audit.p_suggested[~issues] == 0
        ).all()
        said.append(audit.p_suggested[issues].mean())
        true.append((audit.suggested[issues] == cell.true[issues]).mean())
    assert abs(np.mean(said) - np.mean(true)) <= 0.03
    assert np.abs(np.subtract(said, true)).max() <= 0.13


def test_the_doubts_add_up_to_the_count_and_agree_with_the_suggestions() -> None:
    for name in CELLS:
        cell = load(name)
        audit = audit_labels(cell.p, cell.given, cell.in_fold)
        assert (1.0 - audit.quality).sum() == pytest.approx(audit.noise.wrong, rel=0.12)
        assert (audit.p_suggested <= 1.0 - audit.quality + 1e-12).all()
        assert audit.quality[audit.is_issue].max() <= audit.quality[~audit.is_issue].min()


@pytest.mark.parametrize("name", [name for name in CELLS if name.startswith("lt_")])
def test_few_correct_labels_of_rare_classes_are_flagged(name: str) -> None:
    cell = load(name)
    audit = audit_labels(cell.p, cell.given, cell.in_fold)
    mine = rare(cell) & ~cell.wrong
    assert audit.is_issue[mine].mean() <= 0.12


@pytest.mark.parametrize("name", CLEAN_CELLS)
def test_few_labels_are_flagged_once_the_wrong_ones_are_taken_out(name: str) -> None:
    cell = without_wrong(load(name))
    assert audit_labels(cell.p, cell.given, cell.in_fold).is_issue.mean() <= 0.02


def test_hardly_any_label_is_flagged_where_the_model_saw_no_noise_either() -> None:
    cell = synthesize(10, 5_000, 0.0, "sym", seed=3)
    assert audit_labels(cell.p, cell.given).is_issue.mean() <= 0.005


@pytest.mark.parametrize("name", ["focal", "balanced"])
def test_the_guard_finds_probabilities_that_are_not_honest_and_the_quality_falls_back(name: str) -> None:
    p, given = load_uncalibrated(name)
    audit = audit_labels(p, given)
    assert not audit.guard.passed
    assert audit.method == "probability of the given label"
    assert audit.quality == pytest.approx(p[np.arange(len(p)), given])


def test_the_guard_says_how_far_off_probabilities_are() -> None:
    p, given = load_uncalibrated("focal")
    assert check_calibration(p, given).gap == pytest.approx(-0.166, abs=0.001)
    p, given = load_uncalibrated("balanced")
    assert check_calibration(p, given).shift == pytest.approx(0.324, abs=0.001)


def test_the_guard_allows_for_chance_in_few_images() -> None:
    cell = synthesize(10, 30, 0.1, "sym", seed=0)
    guard = check_calibration(cell.p, cell.given)
    assert guard.passed and guard.shift > 0.1


@pytest.mark.parametrize("name", ["lt_pair_10", "bal_pair_10"])
def test_a_net_that_was_trained_briefly_is_not_refused_and_the_posterior_still_ranks_better(name: str) -> None:
    cell = load(name)
    timid = cell.p**0.8 / (cell.p**0.8).sum(axis=1, keepdims=True)
    audit = audit_labels(timid, cell.given)
    assert audit.guard.gap < -0.05 and audit.guard.passed and audit.method == "posterior"
    p_given = timid[np.arange(len(timid)), cell.given]
    assert average_precision(audit.quality, cell.wrong) > average_precision(p_given, cell.wrong) + 0.2


def test_the_order_of_the_images_changes_nothing() -> None:
    cell = load("lt_pair_10")
    order = np.random.default_rng(0).permutation(len(cell.given))
    one = audit_labels(cell.p, cell.given, cell.in_fold)
    other = audit_labels(cell.p[order], cell.given[order], cell.in_fold[order])
    assert other.quality == pytest.approx(one.quality[order], abs=1e-6)
    assert other.noise.wrong == pytest.approx(one.noise.wrong, rel=1e-6)
    assert np.array_equal(other.suggested, one.suggested[order])


def test_new_images_get_the_same_posterior_from_what_the_audit_found() -> None:
    cell = load("bal_pair_20")
    audit = audit_labels(cell.p, cell.given)
    alone = posterior(audit.scaling.apply(cell.p[7:8]), cell.given[7:8], audit.transition)
    assert alone[0] == pytest.approx(audit.posterior[7], abs=1e-12)


def test_a_memory_map_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = load("bal_sym_10")
    whole = audit_labels(cell.p, cell.given)
    monkeypatch.setattr("models.audit._CHUNK_NUMBERS", 999)
    parts = audit_labels(cell.p, cell.given)
    assert np.allclose(parts.quality, whole.quality, atol=1e-12)
    assert np.array_equal(parts.suggested, whole.suggested)


def test_large_data_is_fitted_on_a_part_and_still_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = load("lt_sym_20")
    monkeypatch.setattr("models.audit._FIT_NUMBERS", 25_000)
    audit = audit_labels(cell.p, cell.given)
    assert 0.75 < audit.noise.wrong / cell.wrong.sum() < 1.25
    assert average_precision(audit.quality, cell.wrong) > 0.93


def tags(count: int, seed: int) -> tuple[Floats, Bools, Bools]:
    """Probabilities of the given tags, and true and given tags, of four classes of different frequency."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal([-4.0, -2.0, 0.0, -1.0], [4.0, 4.0, 5.0, 4.0], (count, 4))
    p = 1.0 / (1.0 + np.exp(-log_odds))
    true = rng.random(p.shape) < p
    rates = np.array([0.02, 0.05, 0.05, 0.0])
    flip = rng.random(p.shape) < rates
    return p * (1 - rates) + (1 - p) * rates, true, true ^ flip


def test_tags_are_judged_each_on_its_own_and_the_worst_dominates() -> None:
    ours, plain = [], []
    for seed in range(3):
        p, true, given = tags(4_000, seed)
        audit = audit_tags(p, given)
        wrong = true != given
        ours.append(average_precision(audit.quality, wrong.any(axis=1)))
        plain.append(average_precision(worst_dominates(np.where(given, p, 1.0 - p)), wrong.any(axis=1)))
        assert 0.8 < sum(one.noise.wrong for one in audit.classes) / wrong.sum() < 1.2
        assert audit.is_issue[:, 3].mean() < 0.005  # no noise there
        assert audit.quality == pytest.approx(worst_dominates(audit.elements))
        for c, one in enumerate(audit.classes):
            assert np.array_equal(one.suggested, 1 - given[:, c])
    assert np.mean(ours) > np.mean(plain)  # measured: .611 against .591


def test_the_lowest_of_equal_qualities_are_the_first() -> None:
    assert lowest(np.array([0.5, 0.1, 0.5, 0.5]), 3).tolist() == [True, True, True, False]
    assert not lowest(np.array([0.5]), 0).any()
