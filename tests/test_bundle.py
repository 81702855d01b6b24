"""Bundles on disk: whole or not at all, checked when read, found at three depths."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from models.bundle import (
    CARD_FILE,
    GRAPH_FILE,
    METADATA_KEY,
    Bundle,
    next_version,
    read_bundle,
    version_key,
    write_bundle,
)
from models.card import ModelCard
from models.errors import BundleError


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


def version(bundle: Bundle, name: str) -> ModelCard:
    return bundle.card.model_copy(update={"version": name})


@contextmanager
def disk_that_is_full_after(size: int) -> Iterator[None]:
    """Files of this process may not grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusal(folder: Path) -> str:
    """What reading says, which must not tell where the machine keeps its files."""
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert str(folder.parent.parent) not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path, bundle: Bundle) -> None:
    folder = write_bundle(tmp_path / "tiny", version(bundle, "7"), bundle.graph)
    assert folder == tmp_path / "tiny" / "7"
    assert sorted(path.name for path in folder.iterdir()) == [CARD_FILE, GRAPH_FILE]
    assert read_bundle(folder) == Bundle(version(bundle, "7"), bundle.graph)


def test_a_bundle_may_be_read_by_other_users(tmp_path: Path, bundle: Bundle) -> None:
    folder = write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    assert folder.stat().st_mode & 0o755 == 0o755


def test_the_card_inside_the_graph_is_equal_but_for_the_hash(bundle: Bundle) -> None:
    properties = {pair.key: pair.value for pair in onnx.load_from_string(bundle.graph).metadata_props}
    inside = ModelCard.parse(properties[METADATA_KEY], "graph")
    assert inside.sha256 is None
    assert inside == bundle.card.model_copy(update={"sha256": None})


def test_a_second_write_of_a_version_is_refused_and_changes_nothing(tmp_path: Path, bundle: Bundle) -> None:
    folder = write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    with pytest.raises(BundleError, match=r"/1 exists already; a version is written once"):
        write_bundle(tmp_path, version(bundle, "1"), b"another graph")
    assert read_bundle(folder).graph == bundle.graph
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failing_write_leaves_nothing(tmp_path: Path, bundle: Bundle) -> None:
    with disk_that_is_full_after(len(bundle.graph) // 2), pytest.raises(OSError, match="File too large"):
        write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    assert list(tmp_path.iterdir()) == []
    assert read_bundle(write_bundle(tmp_path, version(bundle, "1"), bundle.graph)).graph == bundle.graph


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_of_the_graph_is_refused_naming_the_file(tmp_path: Path, bundle: Bundle, place: float) -> None:
    folder = write_bundle(tmp_path / "tiny", version(bundle, "1"), bundle.graph)
    changed = bytearray(bundle.graph)
    changed[round(place * (len(changed) - 1))] ^= 1
    (folder / GRAPH_FILE).write_bytes(changed)
    assert refusal(folder).startswith("1/model.onnx: the file has changed since export (SHA-256 ")


def test_a_card_without_a_hash_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    folder = write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    unsigned = bundle.card.model_copy(update={"sha256": None})
    (folder / CARD_FILE).write_text(unsigned.model_dump_json())
    assert refusal(folder) == "1/card.json: sha256 is missing"


@pytest.mark.parametrize("missing", [CARD_FILE, GRAPH_FILE])
def test_a_missing_file_is_named(tmp_path: Path, bundle: Bundle, missing: str) -> None:
    folder = write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    (folder / missing).unlink()
    assert refusal(folder) == f"1/{missing}: no such file or directory"


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, bundle: Bundle) -> None:
    folder = write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    (folder / GRAPH_FILE).unlink()
    (folder / GRAPH_FILE).mkdir()
    assert refusal(folder) == "1/model.onnx: is a directory"


def test_a_card_that_is_none_is_refused_naming_the_file(tmp_path: Path, bundle: Bundle) -> None:
    folder = write_bundle(tmp_path, version(bundle, "1"), bundle.graph)
    (folder / CARD_FILE).write_text("{")
    assert refusal(folder).startswith("1/card.json: document: ")


def test_versions_sort_by_value_after_names() -> None:
    assert sorted(["10", "9", "2.1", "beta", "100"], key=version_key) == ["2.1", "beta", "9", "10", "100"]


def test_the_next_version_is_one_more_than_the_highest_number(tmp_path: Path) -> None:
    assert next_version(tmp_path / "absent") == "1"
    for name in ("9", "10", "beta", "11.5"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == "11"
