"""The TOML file with settings: where it is, what may be in it, and who can read it."""

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

VARIABLE = "FEDROUND_CONFIG"
DEFAULT = Path("fedround.toml")


def find(chosen: object) -> Path | None:
    """Returns the file that is read: the chosen one, that of the environment, or fedround.toml if there is one.

    Args:
        chosen: The value of the flag; None or empty if it was not given.
    """
    named = chosen or os.environ.get(VARIABLE)
    if named:
        return Path(str(named))
    return DEFAULT if DEFAULT.exists() else None


def read(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Returns the settings of a file by name.

    Args:
        path: The file.
        names: The names that it may have.

    Raises:
        ValidationError: It cannot be read, is not TOML, or has a name that is no setting.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid({str(path): f"cannot be read: {error.strerror or error}"}) from None
    except ValueError as error:
        raise _invalid({str(path): f"is not a TOML file: {error}"}) from None
    known = set(names)
    if problems := {f"{path}: {key}": _unknown(key, value, known) for key, value in found.items() if key not in known}:
        raise _invalid(problems)
    return found


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Returns the name that is most like another one, if one is like it."""
    return next(iter(difflib.get_close_matches(name.lower().replace("-", "_"), names, 1, 0.75)), None)


def unknown_variables(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Returns the variables that look like a misspelled setting, each with the variable of that setting."""
    variables = {f"FEDROUND_{name.upper()}": name for name in names}
    found = {
        variable: nearest(variable.removeprefix("FEDROUND_"), variables.values())
        for variable in environment
        # The client's, which may stand in the same environment.
        if variable.startswith("FEDROUND_") and variable not in {*variables, "FEDROUND_TLS_CA", "FEDROUND_TOKEN"}
    }
    return {variable: f"FEDROUND_{name.upper()}" for variable, name in found.items() if name is not None}


def has_password(url: str) -> bool:
    """Returns whether the URL of a database contains a password."""
    return bool(urlsplit(url).password) or "password=" in urlsplit(url).query


def exposes_password(path: Path) -> bool:
    """Returns whether all users of the machine can read a file that has a password in the URL of the database."""
    try:
        is_readable = path.stat().st_mode & stat.S_IROTH
        return bool(is_readable and has_password(tomllib.loads(path.read_text(encoding="utf-8")).get("database", "")))
    except OSError:
        # It was removed since it was read.
        return False


def _unknown(key: str, value: object, names: set[str]) -> str:
    near = nearest(key, names)
    if near is not None:
        return f"no such setting: do you mean {near}?"
    if isinstance(value, dict):
        return "the file has no tables: write its settings without a heading"
    return "no such setting: see fedround serve --help"


def _invalid(problems: Mapping[str, str]) -> ValidationError:
    """Returns an error of the settings, with what is wrong by what it is about."""
    return ValidationError.from_exception_data(
        "Settings",
        [
            # The text is a value of the template: it may contain braces.
            InitErrorDetails(
                type=PydanticCustomError("config_file", "{text}", {"text": text}), loc=(about,), input=about
            )
            for about, text in problems.items()
        ],
    )
