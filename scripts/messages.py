"""What is said to the person at the terminal."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

_SHOWN = 8
LEFT_OUT = "left_out.csv"
"""In the folder of a training: everything that was left out, and why."""


class LeftOut(Protocol):
    """Something that was left out of a data set."""

    @property
    def origin(self) -> str:
        """Where it was."""

    @property
    def reason(self) -> str:
        """Why it is not used."""


def printable(text: str) -> str:
    """Text of somebody's file as a terminal may show it: what is no character to be seen is written as its escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(text: str) -> None:
    """A line for the person, on stderr; progress bars make room for it."""
    tqdm.write(text, file=sys.stderr)


def say_left_out(what: Sequence[LeftOut]) -> None:
    """The first few of what was left out, and how many more there are."""
    for one in what[:_SHOWN]:
        say(printable(f"  left out: {one.origin}: {one.reason}"))
    if len(what) > _SHOWN:
        say(f"  and {len(what) - _SHOWN} more; {LEFT_OUT} in the folder of the run lists them all")


def write_left_out(folder: Path, what: Sequence[LeftOut]) -> None:
    """All of what was left out, as LEFT_OUT in that folder; no such file where it is nothing."""
    file = folder / LEFT_OUT
    if not what:
        file.unlink(missing_ok=True)
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream, lineterminator="\n")
        out.writerow(["where", "why"])
        out.writerows([one.origin, one.reason] for one in what)
