"""Ctrl-C and SIGTERM as an exception, which can wait until a step is finished and saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The process was asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Raises `Interrupted` at a signal; while deferred, the first signal only sets `number`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.deferred = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Takes the two signals over until the block is left. In a thread other than the main one: nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Lets the block finish what it does; `check` raises after it."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False

    def check(self) -> None:
        """Raises what was deferred."""
        if self.number is not None:
            raise Interrupted(self.number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        again, self.number = self.number is not None, number
        if again or not self.deferred:
            raise Interrupted(number)
