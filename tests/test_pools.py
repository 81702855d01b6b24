"""Threads that work ahead of a slow reader, but not far."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from scripts.pools import map_ahead


def test_results_come_in_order_and_no_more_is_begun_than_is_soon_read() -> None:
    begun = list[int]()

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    with ThreadPoolExecutor(4) as pool:
        for read, found in enumerate(map_ahead(pool, work, range(1000))):
            assert found == read * read
            assert len(begun) <= read + 65
    assert sorted(begun) == list(range(1000))


def test_an_error_is_the_readers_and_what_waits_is_not_begun() -> None:
    begun = list[int]()

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("the third")
        return item

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="the third"):
        list(map_ahead(pool, work, range(100_000)))
    assert len(begun) < 200
