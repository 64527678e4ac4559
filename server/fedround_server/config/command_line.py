"""The command line of the server: an option for each setting, in groups, and its help."""

import argparse
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fedround_server.config import file
from fedround_server.config.settings import GROUPS, Settings, is_size
from fedround_server.config.units import show_size

USAGE = "fedround serve [OPTION]..."
DESCRIPTION = """\
Runs a server until SIGTERM or Ctrl-C. An option wins over its environment variable, that over the file, and that over
the default. Sizes and durations may have a unit: 2GiB, 500MB, 30s, 5min, 1h."""
EPILOG = """\
Others can see the command line of a process: give a database URL with a password in the file or in FEDROUND_DATABASE,
not in --database. docs/configuration.md describes all settings, docs/operations.md how to run a server."""
METAVARS = {"database": "URL", "data_dir": "DIR", "architecture": "NAME=FACTORY"}
BOUNDS = (("ge", "at least {}"), ("gt", "more than {}"), ("le", "at most {}"))


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as people read of it.

    Attributes:
        name: Its name, also in the file.
        field: Its field of `Settings`.
        group: Title of its group.
    """

    name: str
    field: FieldInfo
    group: str

    @property
    def option(self) -> str:
        """The option of `fedround serve`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"FEDROUND_{self.name.upper()}"

    @property
    def description(self) -> str:
        """What it is, as a sentence."""
        return self.field.description or ""

    @property
    def kind(self) -> type[Any]:
        """The type of its values, without None; tuple for a list of texts."""
        annotation: Any = self.field.annotation
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = next(one for one in get_args(annotation) if one is not type(None))
        kind: type[Any] = get_origin(annotation) or annotation
        return kind

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it may be; empty if it may be others."""
        pattern = next((one.pattern for one in self.field.metadata if getattr(one, "pattern", None)), "")
        found = re.fullmatch(r"\^\((.+)\)\$", pattern)
        return tuple(found[1].split("|")) if found else ()

    @property
    def unit(self) -> str:
        """The unit of a number; empty for a count and for what is no number."""
        if self.name.endswith("_seconds"):
            return "seconds"
        if self.is_size:
            return "bytes"
        return "calls per second" if "per_second" in self.name else ""

    @property
    def is_size(self) -> bool:
        """Whether it is a number of bytes."""
        return is_size(self.name)

    @property
    def metavar(self) -> str:
        """What stands for its value in the help."""
        if self.choices:
            return "|".join(self.choices)
        if self.kind in (int, float):
            return {"seconds": "SECONDS", "bytes": "BYTES"}.get(self.unit, "N")
        if self.name.endswith("listen"):
            return "HOST:PORT"
        return METAVARS.get(self.name, "FILE" if self.kind is Path else "TEXT")

    @property
    def default(self) -> str:
        """The default, with its unit; empty if there is none, or if the description says it."""
        value = self.field.default
        if value is None or value in ("", ()) or self.field.default_factory is not None:
            return ""
        if self.kind is bool:
            return str(value).lower()
        return self._shown(value)

    @property
    def range(self) -> str:
        """The values that a number may have; empty for what is no number."""
        bounds = {name: getattr(one, name) for one in self.field.metadata for name, _ in BOUNDS if hasattr(one, name)}
        return ", ".join(text.format(self._shown(bounds[name])) for name, text in BOUNDS if name in bounds)

    def _shown(self, value: Any) -> str:
        if self.is_size:
            return show_size(value)
        if self.unit == "seconds":
            return f"{value:,.12g} s"
        return f"{value:,.12g}" if self.kind in (int, float) else str(value)


def all_settings() -> Iterator[Setting]:
    """Yields the settings in their order."""
    group = "Configuration"
    for name, field in Settings.model_fields.items():
        group = GROUPS.get(name, group)
        yield Setting(name, field, group)


def parse(argv: list[str]) -> dict[str, Any]:
    """Returns the settings that a command line chooses, as texts by name; prints help or an error, and exits."""
    return {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedround serve",
        usage=USAGE,
        description=f"{DESCRIPTION}\n\n{_file_in_use()}",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
    )
    groups: dict[str, Any] = {}
    for setting in all_settings():
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        kind: dict[str, Any] = {"metavar": setting.metavar}
        if setting.kind is bool:
            kind = {"action": "store_true"}
        elif setting.kind is tuple:
            kind["action"] = "append"
        groups[setting.group].add_argument(
            setting.option, dest=setting.name, default=None, help=_help(setting).replace("%", "%%"), **kind
        )
    return parser


def _help(setting: Setting) -> str:
    default = f" Default: {setting.default}." if setting.default and setting.kind is not bool else ""
    return f"{setting.description}{default} [{setting.variable}]"


def _file_in_use() -> str:
    path = file.find(None)
    return (
        "No file is read: there is no fedround.toml in this directory, and FEDROUND_CONFIG names none."
        if path is None
        else f"The file that is read here: {path}"
    )
