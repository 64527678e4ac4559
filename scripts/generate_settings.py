"""Writes the tables of docs/configuration.md from the server's settings.

With --check it writes nothing, and fails when the page is not up to date.
"""

import re
import sys
from itertools import groupby
from pathlib import Path

from fedround_server.config.command_line import Setting, all_settings

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
KINDS = {str: "text", int: "integer", float: "number", bool: "boolean", Path: "path", tuple: "list of texts"}
HEADER = "| option | variable, key in the file | type | default | range | meaning |"
BEGIN, END = "<!-- settings -->\n", "<!-- end -->"


def tables() -> str:
    """Returns a table for each group of settings, below its heading."""
    parts = []
    for group, settings in groupby(all_settings(), lambda one: one.group):
        rows = [row(setting) for setting in settings]
        header = [
            "| option | variable, key in the file | type | default | range | meaning |",
            "|---|---|---|---|---|---|",
        ]
        parts.append("\n".join([f"## {group}", "", *header, *rows]))
    return "\n\n".join(parts)


def row(setting: Setting) -> str:
    """Returns the row of a setting."""
    key = "" if setting.name == "config" else f", `{setting.name}`"
    kind = " or ".join(f"`{one}`" for one in setting.choices) or KINDS[setting.kind]
    if setting.unit:
        kind += f", {setting.unit}"
    cells = (
        f"`{setting.option}`",
        f"`{setting.variable}`{key}",
        kind,
        setting.default or ("" if setting.field.default_factory else "none"),
        setting.range,
        setting.description,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(text: str) -> str:
    """Returns the page with the tables between their markers."""
    found, count = re.subn(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}{tables()}\n\n{END}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE} has {count} places for the settings")
    return found


def main(arguments: list[str]) -> int:
    """Writes or checks the page; returns the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" not in arguments:
        PAGE.write_text(page(text), encoding="utf-8")
    elif page(text) != text:
        sys.stderr.write("docs/configuration.md is stale: run 'make settings' and commit what it writes.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
