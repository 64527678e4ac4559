"""The commands in the pages can be typed: each exists, with its options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fedround_client.command import app
from fedround_server.backup.__main__ import backup_parser, restore_parser
from fedround_server.config import Settings
from fedround_server.database import copy_parser as database_parser
from fedround_server.objects import copy_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("client/**/*.md")])
# These commands pass their words on.
PASSED_ON = {
    "serve": {f"--{name.replace('_', '-')}" for name in Settings.model_fields} | {"--help"},
    "demo": {"--output", "--rounds"},
    "backup": set(backup_parser()._option_string_actions),
    "restore": set(restore_parser()._option_string_actions),
    "database": set(database_parser()._option_string_actions),
    "objects": set(copy_parser()._option_string_actions),
}


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `fedround` in each line of a code block, and in code within the text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    in_blocks = re.findall(r"^(?: {4}|\$ | {4}\$ )(?:\w+=\S+ )*(?:\S*/)?fedround( .+)$", text, re.MULTILINE)
    for line in in_blocks + re.findall(r"`fedround ([a-z-][^`]*)`", text):
        yield shlex.split(line.partition(" > ")[0], comments=True)


def unknown(words: list[str], command: Any) -> list[str]:
    """The words of a command that do not exist; what follows an option is not looked at."""
    options: set[str] = set()
    for position, word in enumerate(words):
        options |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        if command.name in PASSED_ON:
            known = PASSED_ON[command.name]
            return [one for one in words[position:] if one.startswith("--") and one.partition("=")[0] not in known]
        if word.startswith("-"):
            if word.partition("=")[0] not in options:
                return [word]
        elif hasattr(command, "commands") and not "".join(words[:position][-1:]).startswith("--"):
            if word not in command.commands:
                return [word]
            command = command.commands[word]
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    command = typer.main.get_command(app)
    assert {" ".join(words): found for words in commands(page) if (found := unknown(words, command))} == {}


@pytest.mark.parametrize(
    "text", ["user create ward --role actor", "--tls-ca ca.pem user show", "serve --listen :1", "backup verify B"]
)
def test_a_command_that_exists_is_accepted(text: str) -> None:
    assert unknown(text.split(), typer.main.get_command(app)) == []


@pytest.mark.parametrize(
    "text", ["user make ward", "user create ward --rolle actor", "serve --lisen :1", "usr", "backup --out B"]
)
def test_a_command_that_does_not_exist_is_found(text: str) -> None:
    assert len(unknown(text.split(), typer.main.get_command(app))) == 1


def test_the_pages_have_commands() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 30
