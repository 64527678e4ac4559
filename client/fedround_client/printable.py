"""Text for terminals: characters that a terminal would obey or hide become visible."""

from __future__ import annotations

import unicodedata

# Controls (Cc: C0, DEL, C1), formats (Cf: bidirectional and zero-width ones, tags), line and paragraph separators,
# surrogates, which cannot be encoded, and code points that are private or unassigned.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(value: object) -> str:
    r"""Returns a value as text in which control and format characters are escaped: ESC becomes \x1b, a newline \n.

    A server or another user may choose names and messages, and a terminal would obey the control characters in them.
    Backslashes stay as they are: the result is for people, and cannot be converted back.
    """
    text = str(value)
    # Most texts. What is printable by this definition has none of the categories above.
    if text.isprintable():
        return text
    return "".join(_escape(letter) if unicodedata.category(letter) in _ESCAPED else letter for letter in text)


def one_line(value: object) -> str:
    """Returns a value as `printable` text in which white space, also line breaks, is one space."""
    return printable(" ".join(str(value).split()))


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
