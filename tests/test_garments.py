import csv
import gzip
import hashlib
import io
import os
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import InvalidInput
from scripts.data import build
from scripts.garments import data_digest, read_flips, unpack
from scripts.readers import DataSet, read_dataset
from scripts.splits import split_dataset

DATA = Path(str(resources.files("scripts").joinpath("data")))
SOURCE = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(DATA / "garments.npz", allow_pickle=False) as file:
        return dict(file.items())


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("garments") / "new" / "folder"
    unpack(out)
    return out


@pytest.fixture(scope="module")
def data(unpacked: Path) -> DataSet:
    return read_dataset(unpacked, progress=False)


def true_labels(arrays: dict[str, np.ndarray]) -> np.ndarray:
    classes, truth = arrays["classes"].tolist(), arrays["train_labels"].copy()
    place = {f"train_{index:05d}.png": n for n, index in enumerate(arrays["train_index"].tolist())}
    for flip in read_flips().values():
        truth[place[flip.image]] = classes.index(flip.true)
    return truth


def test_the_true_training_labels_are_long_tailed_a_hundred_to_one(arrays: dict[str, np.ndarray]) -> None:
    counts = sorted(np.bincount(true_labels(arrays)).tolist(), reverse=True)
    assert counts == [2015, 1208, 724, 434, 260, 156, 94, 56, 34, 20] == build.class_sizes()
    assert sum(counts) == len(arrays["train_images"]) == 5001
    assert 95 < counts[0] / counts[-1] < 105


def test_the_test_part_is_balanced_and_no_flip_touches_it(arrays: dict[str, np.ndarray]) -> None:
    assert np.bincount(arrays["test_labels"]).tolist() == [100] * 10
    assert all(name.startswith("train_") for name in read_flips())


def test_every_flip_differs_from_the_truth_and_stands_in_the_training_labels(arrays: dict[str, np.ndarray]) -> None:
    classes = arrays["classes"].tolist()
    given = dict(zip(arrays["train_index"].tolist(), arrays["train_labels"].tolist(), strict=True))
    flips = read_flips()
    assert 0.045 < len(flips) / 5001 < 0.055
    for name, flip in flips.items():
        assert flip.image == name and flip.given != flip.true and flip.true in classes
        assert classes[given[int(name[6:11])]] == flip.given


def test_half_of_the_flips_go_to_the_look_alike_and_every_class_loses_a_twentieth() -> None:
    flips = read_flips().values()
    alike = sum(build.LOOK_ALIKE[flip.true] == flip.given for flip in flips)
    assert 0.5 <= alike / len(flips) < 0.6  # some of the uniform half land there too
    lost = Counter(flip.true for flip in flips)
    assert [lost[name] for name in build.FREQUENT_TO_RARE] == [round(0.05 * n) for n in build.class_sizes()]


def test_no_picture_is_there_twice(arrays: dict[str, np.ndarray]) -> None:
    pictures = [picture.tobytes() for part in ("train", "test") for picture in arrays[f"{part}_images"]]
    assert len(set(pictures)) == 6001


def test_the_embedded_file_is_small_and_its_hashes_and_licence_stand_in_the_readme() -> None:
    readme = (DATA / "README.md").read_text()
    assert (DATA / "garments.npz").stat().st_size <= 4 * 2**20
    for name in ("garments.npz", "garments_flips.csv"):
        assert f"| {hashlib.sha256((DATA / name).read_bytes()).hexdigest()} | {name} |" in readme
    assert all(digest in readme for digest in build.SOURCES.values())
    assert "Zalando" in (DATA / "LICENSE").read_text()


def test_the_readme_table_says_what_the_files_hold(arrays: dict[str, np.ndarray]) -> None:
    readme, classes = (DATA / "README.md").read_text(), arrays["classes"].tolist()
    truth, given = np.bincount(true_labels(arrays)), np.bincount(arrays["train_labels"])
    wrong = Counter(flip.given for flip in read_flips().values())
    for k, name in enumerate(classes):
        assert f"| {name} | {truth[k]} | {given[k]} | {wrong[name]} | 100 |" in readme


@pytest.mark.skipif(not SOURCE.exists(), reason="needs the Debian package dataset-fashion-mnist")
def test_building_again_gives_the_same_arrays(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    build.build(SOURCE, tmp_path)
    with np.load(tmp_path / "garments.npz", allow_pickle=False) as again:
        assert set(again) == set(arrays)
        assert all(np.array_equal(again[key], value) for key, value in arrays.items())
    assert (tmp_path / "garments_flips.csv").read_bytes() == (DATA / "garments_flips.csv").read_bytes()


def test_an_altered_original_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(SystemExit, match="not the expected file"):
        build.build(tmp_path, tmp_path)


def test_unpacked_folders_hold_the_same_pixels_under_the_given_labels(
    unpacked: Path, data: DataSet, arrays: dict[str, np.ndarray]
) -> None:
    assert data.labels == tuple(sorted(arrays["classes"].tolist()))
    assert (len(data.samples), data.skipped, data.ignored) == (6001, (), 1)
    expected = dict(zip(data.labels, data.counts.tolist(), strict=True))
    for k, name in enumerate(arrays["classes"].tolist()):
        assert expected[name] == int((arrays["train_labels"] == k).sum()) + 100
    for n in (0, 2500, 5000):
        folder = arrays["classes"][arrays["train_labels"][n]]
        path = unpacked / "train" / str(folder) / f"train_{arrays['train_index'][n]:05d}.png"
        assert np.array_equal(np.asarray(Image.open(path)), arrays["train_images"][n])


def test_each_flip_lies_in_the_folder_of_its_given_class(unpacked: Path) -> None:
    assert all((unpacked / "train" / flip.given / name).is_file() for name, flip in read_flips().items())


def test_the_unpacked_set_splits_without_its_test_part(data: DataSet) -> None:
    train, val = split_dataset(data)
    assert len(train) + len(val) == 5001
    assert {sample.split for sample in (*train, *val)} == {"train"}
    assert {sample.label for sample in val} == set(range(10))


def test_unpacking_again_changes_nothing_not_even_what_was_corrected_by_hand(unpacked: Path) -> None:
    first = min((unpacked / "train" / "Bag").iterdir())
    moved = first.rename(unpacked / "train" / "Shirt" / first.name)
    unpack(unpacked)
    assert not first.exists()
    moved.rename(first)


def test_a_half_finished_unpacking_is_finished(unpacked: Path) -> None:
    files = sorted((unpacked / "train" / "Bag").iterdir())
    complete = files[0].read_bytes()
    files[0].write_bytes(b"half")
    files[1].unlink()
    (unpacked / ".garments").write_text("unfinished\n")
    unpack(unpacked)
    assert files[0].read_bytes() == complete and files[1].exists()
    assert (unpacked / ".garments").read_text().strip() == data_digest()
    assert sorted(os.listdir(unpacked)) == [".garments", "test", "train"]


@pytest.mark.parametrize("strange", ["train/mine", ".garments"])
def test_a_folder_from_elsewhere_or_of_another_version_is_left_alone(tmp_path: Path, strange: str) -> None:
    (tmp_path / strange).parent.mkdir(exist_ok=True)
    (tmp_path / strange).write_text("another version")
    with pytest.raises(InvalidInput, match="choose another"):
        unpack(tmp_path)
    assert (tmp_path / strange).read_text() == "another version"


def test_the_flips_file_has_the_three_promised_columns() -> None:
    text = (DATA / "garments_flips.csv").read_text()
    assert next(csv.reader(io.StringIO(text))) == ["image", "given", "true"]
