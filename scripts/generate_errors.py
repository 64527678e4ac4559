"""Writes the SDK's exceptions and the tables of docs/errors.md from the server's error classes.

With --check it writes nothing, and fails when a file is not up to date.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

from fedround_server.domain.errors import FedroundError, family, model, request, round, training, transfer, user
from fedround_server.interceptors.errors import CODES

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "client/fedround_client/errors/reason.py"
PAGE = ROOT / "docs/errors.md"
MODULES = (user, request, training, round, transfer, model)
# The SDK uses this family for a server that it cannot reach, too.
CLIENT_NAMES = {"Unavailable": "ServerUnavailable"}


def classes(module: ModuleType) -> Iterator[type[FedroundError]]:
    """Yields the error classes that a module defines, in their order."""
    for found in vars(module).values():
        if isinstance(found, type) and issubclass(found, FedroundError) and found.__module__ == module.__name__:
            if not found.remedy or "reason" not in vars(found):
                raise ValueError(f"{found.__name__} has no reason, or no remedy")
            yield found


def family_of(kind: type[FedroundError]) -> type[FedroundError]:
    """Returns the family of an error class."""
    return next(one for one in kind.__mro__ if one.__module__ == family.__name__)


def summary(kind: type[FedroundError]) -> str:
    """Returns the docstring of a class as one line."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def client_module() -> str:
    """Returns the source of the SDK's exceptions."""
    kinds = [kind for module in MODULES for kind in classes(module)]
    bases = sorted({base_name(kind) for kind in kinds})
    names = sorted(kind.__name__ for kind in kinds)
    lines = [
        '"""One exception per reason of the server, below that of its status code. Written by `make errors`."""',
        "",
        "from fedround_client.errors.family import (",
        *(f"    {name}," for name in bases),
        ")",
        "",
        "__all__ = [",
        *(f'    "{name}",' for name in names),
        "]",
    ]
    for kind in kinds:
        lines += [
            "",
            "",
            f'class {kind.__name__}({base_name(kind)}, reason="{kind.reason}"):',
            f'    """{summary(kind)}"""',
        ]
    return "\n".join(lines) + "\n"


def base_name(kind: type[FedroundError]) -> str:
    """Returns the name of the SDK's class for the family of an error class."""
    name = family_of(kind).__name__
    return CLIENT_NAMES.get(name, name)


def page(text: str) -> str:
    """Returns docs/errors.md with each table between its markers `<!-- errors: MODULE -->` and `<!-- end -->`."""
    for module in MODULES:
        name = module.__name__.rpartition(".")[2]
        rows = [
            f"| {summary(kind).rstrip('.')} | {CODES[family_of(kind)].name} | `{kind.reason}` | {kind.remedy} |"
            for kind in classes(module)
        ]
        table = "\n".join(["| error | code | reason | what to do |", "|---|---|---|---|", *rows])
        pattern = rf"(<!-- errors: {name} -->\n).*?(<!-- end -->)"
        # A function, because backslashes of a replacement text would be interpreted.
        text, count = re.subn(pattern, partial(insert, table), text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} places for the errors of {name}")
    return text


def insert(table: str, found: re.Match[str]) -> str:
    """Returns the markers with a table between them."""
    return f"{found[1]}{table}\n{found[2]}"


def main(arguments: list[str]) -> int:
    """Writes or checks the files; returns the exit code."""
    wanted = {CLIENT: client_module(), PAGE: page(PAGE.read_text(encoding="utf-8"))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run 'make errors' and commit what it writes.\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
