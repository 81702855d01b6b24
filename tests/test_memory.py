"""What was freed goes back to the system."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scripts.bench import rss_mb
from service.memory import give_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_a_thread_has_freed_leaves_the_process() -> None:
    def fill() -> object:
        blocks = [np.ones(100_000, np.uint8) for _ in range(400)]
        return blocks[-1]  # keeps what was freed below it from the system

    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(fill).result()
        before = rss_mb(os.getpid())
        give_back()
        assert before - rss_mb(os.getpid()) > 20.0
    assert kept is not None
