"""Memory that was freed, and goes back to the system."""

import ctypes


def give_back() -> None:
    """Has the C library return what it holds for threads, many of which are gone; does nothing where it cannot.

    glibc keeps what was freed in an arena of each thread, some megabytes of it after large pictures (malloc_trim(3)).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
