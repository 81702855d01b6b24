import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audit_records import AuditRecord, Row, Verdicts
from service.audit_spool import SpoolWriter, inspect, parse_item, read_part
from service.audit_store import AuditStore, bytes_of
from service.errors import BodyTooLarge, MalformedRequest, NotFound, NotReady, Overloaded
from service.loss_item import LossItem

MUCH = 1 << 30


Opened = Callable[..., AuditStore]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Makes opened stores, and closes them at the end."""
    stores = []

    def make(root: Path, most: int = 10, most_bytes: int = MUCH, keep: float = 60.0) -> AuditStore:
        stores.append(AuditStore(root, most, most_bytes, keep))
        stores[-1].open()
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def record_of(audit: str, **facts: Any) -> AuditRecord:
    known = {"name": None, "model": "linear", "version": "1", "sha256": None, "activation": None, "outputs": 2}
    return AuditRecord(**{**known, "id": audit, "created": time.time(), "size": 100, "items": 4, **facts})


def begun(store: AuditStore, **facts: Any) -> AuditRecord:
    audit, file = store.begin()
    file.items.write_bytes(b"{}\n")
    record = record_of(audit, **facts)
    store.add(record)
    return record


def row(line: int, quality: float | None) -> Row:
    if quality is None:
        return Row(line, "a", {"error": {"detail": "bad"}})
    target, p = np.asarray([line % 2], np.int32), np.asarray([quality, 1.0 - quality], np.float32)
    return Row(line, "a", {"id": f"{line}", "p_given": quality}, quality, "b", True, 0.5, target, p)


def test_a_restart_finds_the_rows_and_goes_on_where_it_was(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path)
    record = begun(store, state="running")
    record = record.model_copy(update={"offset": 77, "line": 2, "done": 2})
    store.append(record, [row(1, 0.5), row(2, 0.25)])
    store.close()
    again = opened(tmp_path)
    assert again.all() == [record]
    file = again.file(record.id)
    assert file.items.read_bytes() == b"{}\n"
    again.append(record.model_copy(update={"line": 4, "done": 4}), [row(3, None), row(4, 0.25)])
    ended = again.end(again.get(record.id), "done")
    assert ended.is_final and not file.items.exists()
    rows = again.page(record.id, 0, 10)
    assert [(one.rank, one.row.line, one.row.quality) for one in rows] == [
        (1, 2, 0.25),
        (2, 4, 0.25),
        (3, 1, 0.5),
        (4, 3, None),
    ]
    assert [one.rank for one in again.page(record.id, 1, 2)] == [2, 3]
    again.close()
    third = opened(tmp_path)
    assert third.get(record.id) == ended and third.page(record.id, 0, 10) == rows


def test_a_part_is_written_whole_or_not_at_all(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path)
    record = begun(store)
    store.append(record.model_copy(update={"done": 1}), [row(1, 0.5)])
    with pytest.raises(sqlite3.IntegrityError):
        store.append(record.model_copy(update={"done": 3}), [row(2, 0.5), row(1, 0.5)])
    store.close()
    assert opened(tmp_path).get(record.id).done == 1
    lines, _ = store.file(record.id).targets(1)
    assert lines.tolist() == [1]


def test_verdicts_replace_the_rows_own_qualities_and_rank_them(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path)
    record = begun(store)
    store.append(record, [row(1, 0.5), row(2, None), row(3, 0.25)])
    lines, targets = store.file(record.id).targets(1)
    assert lines.tolist() == [1, 3] and targets.tolist() == [[1], [1]]
    p = store.file(record.id).probabilities(2, 2)
    np.testing.assert_array_equal(p, np.asarray([[0.5, 0.5], [0.25, 0.75]], np.float32))
    store.end(record, "done", Verdicts(lines, np.asarray([0.1, 0.9]), np.asarray([True, False]), ["b", None]))
    found = [one.row for one in store.page(record.id, 0, 10)]
    assert [(one.line, one.quality, one.is_issue, one.suggested) for one in found] == [
        (1, 0.1, True, "b"),
        (3, 0.9, False, None),
        (2, None, None, None),
    ]
    assert found[0].facts == {"id": "1", "p_given": 0.5}


def test_an_upload_that_never_ended_is_forgotten_at_the_next_start(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path)
    kept = begun(store)
    left, file = store.begin()
    file.items.write_bytes(b"x" * 100)
    store.close()
    again = opened(tmp_path)
    assert [record.id for record in again.all()] == [kept.id]
    assert not (tmp_path / left).exists()


def test_a_damaged_audit_is_left_alone_and_the_others_are_there(
    tmp_path: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    bad, good = begun(store), begun(store)
    store.close()
    for file in (tmp_path / bad.id).glob("audit.sqlite*"):
        file.write_bytes(b"no database, whatever its name says, and long enough to be looked at" * 99)
    again = opened(tmp_path)
    assert [record.id for record in again.all()] == [good.id]
    assert f"audit {bad.id}: its database cannot be read" in caplog.text
    with pytest.raises(NotFound):
        again.get(bad.id)


def test_a_folder_belongs_to_one_process(tmp_path: Path, opened: Opened) -> None:
    first = opened(tmp_path)
    with pytest.raises(NotReady, match="another process"):
        opened(tmp_path)
    first.close()
    opened(tmp_path)


def test_nothing_is_made_before_the_first_audit(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path / "deep" / "audits")
    assert store.all() == [] and not (tmp_path / "deep").exists()
    begun(store)
    assert oct((tmp_path / "deep" / "audits").stat().st_mode)[-3:] == "700"


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotReady, match="cannot be written"):
        AuditStore(tmp_path / "file" / "audits", 10, MUCH, 60.0).begin()


def test_more_audits_or_bytes_than_allowed_are_refused(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path, most=2, most_bytes=bytes_of(record_of("x")) + 1000)
    first = begun(store)
    second, _ = store.begin()
    with pytest.raises(Overloaded, match="2 audits"):
        store.begin()
    store.claim(second, 1000)
    with pytest.raises(Overloaded, match="bytes"):
        store.claim(second, 1001)
    with pytest.raises(Overloaded, match="bytes"):
        store.add(record_of(second))
    store.drop(second)
    store.drop(first.id)
    begun(store)


def test_what_has_ended_takes_the_room_of_its_rows_alone(tmp_path: Path, opened: Opened) -> None:
    record = record_of("x", size=MUCH)
    store = opened(tmp_path, most_bytes=bytes_of(record) + 1000)
    ended = begun(store, size=MUCH)
    with pytest.raises(Overloaded):
        begun(store, size=2000)
    store.end(ended, "cancelled")
    begun(store, size=2000)


def test_audits_expire_when_they_have_ended_long_enough_ago(tmp_path: Path, opened: Opened) -> None:
    store = opened(tmp_path, keep=60.0)
    ended, waits = begun(store), begun(store)
    finished = store.end(ended, "done").finished
    assert finished is not None
    store.expire(finished + 59.0)
    assert len(store.all()) == 2
    store.expire(finished + 61.0)
    assert [record.id for record in store.all()] == [waits.id] and not (tmp_path / ended.id).exists()


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        (b'{"logits": [1, 2], "label": 0}', [2048, 952]),
        (b'{"logits": [1, 2], "label": 0, "id": "' + b"x" * 1024 + b'"}', [986, 986, 986, 42]),
        (b'{"image": "aaaa", "label": 0}', [256] * 11 + [184]),
    ],
)
def test_rows_are_taken_by_the_thousand_and_pictures_a_few_at_a_time(
    line: bytes, sizes: list[int], tmp_path: Path
) -> None:
    (tmp_path / "items").write_bytes(b"\n".join([line] * 3000))
    found, offset, number = [], 0, 0
    while (part := read_part(tmp_path / "items", offset, number)).lines:
        found.append(len(part.lines))
        offset, number = part.offset, part.line
    assert found == sizes


def test_fewer_pictures_are_taken_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "items").write_bytes(b'{"image": "aaaa", "boxes": []}\n' * 40)
    assert [len(read_part(tmp_path / "items", 0, 0, most).lines) for most in (1, 16, 99)] == [1, 16, 40]


def test_given_boxes_are_counted(tmp_path: Path) -> None:
    line = b'{"image": "aaaa", "boxes": [{"box": [1, 2, 3, 4], "label": 0}, {"label": "box", "box": [1, 2, 3, 4]}]}\n'
    (tmp_path / "items").write_bytes(line * 200)
    # A label of that name counts as one more.
    assert (inspect(tmp_path / "items").items, inspect(tmp_path / "items").boxes) == (200, 600)


@given(st.lists(st.sampled_from([b"", b" ", b"{}", b'{"label": 0}', b"x", b"\r"]), max_size=600), st.booleans())
def test_parts_hold_every_line_once_with_its_number(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], is_open: bool
) -> None:
    path = tmp_path_factory.mktemp("items") / "items"
    path.write_bytes(b"\n".join(lines) + (b"" if is_open else b"\n"))
    found, offset, line = [], 0, 0
    while (part := read_part(path, offset, line)).lines:
        found += part.lines
        offset, line = part.offset, part.line
    want = [(number, text.strip()) for number, text in enumerate(lines, start=1) if text.strip()]
    assert [(one.number, one.text) for one in found] == want
    if any(text.startswith(b"{") for _, text in want[:100]):
        assert inspect(path).items == len(want)


def test_a_row_is_found_for_its_width_though_the_first_line_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "items"
    path.write_bytes(b'x\n{"label": 1}\n{"logits": [1, 2, 3, 4]}\n{"logits": [1]}\n')
    assert (inspect(path).items, inspect(path).width) == (4, 4)


def test_an_item_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "items"
    path.write_bytes(b'{"logits": [1, 2], "label": 1}\n{"logits": [1, 2], "label": 1, "more": 2}\n{"label": NaN}\n')
    items = [parse_item(line) for line in read_part(path, 0, 0).lines]
    assert isinstance(items[0], LossItem) and items[0].label == 1
    assert "more" in str(items[1]) and isinstance(items[2], MalformedRequest)


def test_a_spool_stops_at_its_cap(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "items", 10, "identity")
    writer.write(b"x" * 10)
    with pytest.raises(BodyTooLarge):
        writer.write(b"x")
    writer.close()
    assert (tmp_path / "items").stat().st_size <= 10
