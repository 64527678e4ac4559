"""The code blocks of a page."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^```(\S*)[^\n]*\n(.*?)^```$|^((?: {4,8}\S[^\n]*\n)(?:    [^\n]*\n|\n(?=    ))*)", re.MULTILINE | re.DOTALL
)
SHELL = ("bash", "console", "sh", "shell")
# How a line of an indented block begins that is typed in a shell; other indented blocks are formulas or output.
TYPED = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:fedround|export|source|cd|make|pip|python3?|openssl|grpcurl|buf|call|printf|\w+=\S+\n)\b"
)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        line: Its first line in the page, from 1.
        text: Without its fence and indentation.
        is_python: Whether it is Python; otherwise it is typed in a shell.
    """

    line: int
    text: str
    is_python: bool

    def commands(self) -> Iterator[str]:
        """Yields the commands of a shell, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield shlex.join(words)


def blocks(page: Path) -> Iterator[Block]:
    """Yields the blocks of Python and of a shell, in their order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        language, fenced, indented = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        if language == "python":
            yield Block(line + 1, fenced, is_python=True)
        elif language in SHELL:
            yield Block(line + 1, fenced, is_python=False)
        elif indented:
            inner = textwrap.dedent(indented)
            if TYPED.match(inner):
                yield Block(line, inner, is_python=False)
