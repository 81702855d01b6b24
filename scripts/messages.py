"""What is said to the person at the terminal."""

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """A line for the person, on stderr; progress bars make room for it."""
    tqdm.write(text, file=sys.stderr)
