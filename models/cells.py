"""Text in the cells of our CSV files, which people open in spreadsheets."""

import re

_FORMULA = re.compile(r"'*[=+\-@]")


def neutralize(text: str) -> str:
    """A text cell for our CSV files: an apostrophe before a leading = + - @, which a spreadsheet would compute.

    Text that has such an apostrophe already gets another, so that `restore` gives back what was there.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def restore(text: str) -> str:
    """Undoes the apostrophe that our CSV files put before a leading = + - @ against spreadsheet formulas."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
