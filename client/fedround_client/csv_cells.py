"""Cells of CSV files in which no text becomes a formula of a spreadsheet."""

from __future__ import annotations

from fedround_client.printable import printable

_FORMULA = tuple("=+-@\t\r\n" + "\uff1d\uff0b\uff0d\uff20")
"""What a formula may begin with in spreadsheets, also in its full-width form."""


def harmless(cell: object) -> str:
    """Returns the text of a cell. A text that a spreadsheet would take for a formula gets an apostrophe before it.

    Numbers are recognised by their type, not by their text: -0.5 stays a number, and a name such as -1+1 does not
    become one. Control characters are escaped.
    """
    text = printable(cell)
    if isinstance(cell, int | float) or not str(cell).startswith(_FORMULA):
        return text
    return f"'{text}"
