"""Writes docs/reference from the API's descriptors and from the command: `make reference`.

With --check it writes nothing, and fails when a page is not up to date.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from fedround_client.command import app

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/reference"
PROTOSET = ROOT / "generated/fedround/v1/fedround.protoset"
PACKAGE = ".fedround.v1."
# Field numbers of descriptor.proto, which make up the paths of comments.
MESSAGES, ENUMS, SERVICES, SYNTAX = 4, 5, 6, 12
FIELDS, NESTED, VALUES, METHODS = 2, 3, 2, 2
NAME = re.compile(r"(?<![\w.-])(?:--[a-z][a-z-]*|\w+(?:\.\w+)*_\w*|[a-z]+\.\w+_\w+)")
"""Options, and names with an underscore."""
NOT_GENERATED = {"README.md", "sdk.md"}


class ApiPage:
    """The page of one proto file: its services, messages and enums, with their comments."""

    def __init__(self, file: FileDescriptorProto, homes: dict[str, str]) -> None:
        """Reads the comments.

        Args:
            file: A proto file with source info.
            homes: The page of each message and enum, by its name in the package.
        """
        self._file = file
        self._name = page_name(file)
        self._homes = homes
        self._comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}

    def write(self) -> str:
        """Returns the page."""
        parts = [f"# {self._file.name}", self._comment(SYNTAX)]
        for at, service in enumerate(self._file.service):
            parts += [f"## {service.name}", self._comment(SERVICES, at)]
            for number, method in enumerate(service.method):
                parts += [f"### {method.name}", self._signature(method), self._comment(SERVICES, at, METHODS, number)]
        messages = [*self._messages(self._file.message_type, (MESSAGES,), "")]
        parts += ["## Messages" if messages else "", *messages]
        enums = [part for at, enum in enumerate(self._file.enum_type) for part in self._enum(enum, ENUMS, at)]
        parts += ["## Enums" if enums else "", *enums]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _comment(self, *path: int) -> str:
        lines = self._comments.get(path, "").strip().splitlines()
        kept = [line.strip() for line in lines if not line.strip().startswith("buf:lint:")]
        return escape(" ".join(kept))

    def _signature(self, method: MethodDescriptorProto) -> str:
        asked, answered = self._type_link(method.input_type), self._type_link(method.output_type)
        sent = f"a stream of {asked}" if method.client_streaming else asked
        returned = f"a stream of {answered}" if method.server_streaming else answered
        return f"Takes {sent}; returns {returned}."

    def _messages(self, messages: Any, path: tuple[int, ...], prefix: str) -> Iterator[str]:
        for at, message in enumerate(messages):
            if message.options.map_entry:
                continue
            here = (*path, at)
            yield f"### {prefix}{message.name}"
            yield self._comment(*here)
            if message.field:
                rows = [self._row(message, field, *here, FIELDS, at) for at, field in enumerate(message.field)]
                yield "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])
            yield from self._messages(message.nested_type, (*here, NESTED), f"{prefix}{message.name}.")

    def _row(self, message: DescriptorProto, field: FieldDescriptorProto, *path: int) -> str:
        meaning = self._comment(*path)
        if field.HasField("oneof_index") and not field.proto3_optional:
            meaning = f"{meaning} One of `{message.oneof_decl[field.oneof_index].name}`.".strip()
        return f"| `{field.name}` = {field.number} | {self._field_type(message, field)} | {meaning} |"

    def _field_type(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        entry = next(
            (one for one in message.nested_type if one.options.map_entry and field.type_name.endswith(f".{one.name}")),
            None,
        )
        if entry is not None:
            key, value = entry.field
            return f"map of {self._single(key)} to {self._single(value)}"
        words = {FieldDescriptorProto.LABEL_REPEATED: "repeated "}.get(field.label, "")
        return ("optional " if field.proto3_optional else words) + self._single(field)

    def _single(self, field: FieldDescriptorProto) -> str:
        return (
            self._type_link(field.type_name)
            if field.type_name
            else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
        )

    def _type_link(self, type_name: str) -> str:
        name = type_name.removeprefix(PACKAGE)
        home = self._homes.get(name)
        if home is None:
            return f"`{type_name.removeprefix('.')}`"
        page = "" if home == self._name else home
        return f"[{name}]({page}#{name.lower().replace('.', '')})"

    def _enum(self, enum: EnumDescriptorProto, *path: int) -> Iterator[str]:
        yield f"### {enum.name}"
        yield self._comment(*path)
        rows = [
            f"| `{value.name}` = {value.number} | {self._comment(*path, VALUES, at)} |"
            for at, value in enumerate(enum.value)
        ]
        yield "\n".join(["| value | meaning |", "|---|---|", *rows])


def page_name(file: FileDescriptorProto) -> str:
    """Returns the name of the page of a proto file."""
    return f"api-{Path(file.name).stem}.md"


def escape(text: str) -> str:
    """Escapes a text for a paragraph or a cell of Markdown; what is code in it stays code, and names become code."""
    parts = text.split("`")
    plain = [re.sub(r"([*\[\]|\\])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    named = [NAME.sub(r"`\g<0>`", part) for part in plain]
    code = [escape_cell(part) for part in parts[1::2]]
    return "`".join(named[at // 2] if at % 2 == 0 else code[at // 2] for at in range(len(parts)))


def escape_cell(code: str) -> str:
    """Escapes code for a cell of a table."""
    return code.replace("|", r"\|")


def names(messages: Any, prefix: str = "") -> Iterator[str]:
    """Yields the names of messages, also of those within others."""
    for message in messages:
        yield prefix + message.name
        yield from names(message.nested_type, f"{prefix}{message.name}.")


def api_pages() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of the page of each proto file."""
    files = [
        one for one in FileDescriptorSet.FromString(PROTOSET.read_bytes()).file if one.package == PACKAGE.strip(".")
    ]
    homes = {
        name: page_name(file)
        for file in files
        for name in (*names(file.message_type), *(enum.name for enum in file.enum_type))
    }
    for file in files:
        yield page_name(file), ApiPage(file, homes).write()


def command_page() -> str:
    """Returns the page of the command, with all commands and options."""
    parts = [
        "# Commands",
        "Every command and option, as `--help` has them. [The command](../command.md) says what they have in common:"
        " names instead of ids, formats, errors and exit codes.",
    ]
    for words, command in walk(typer.main.get_command(app), ["fedround"]):
        # The name of a command stands in the usage as it is typed.
        context = typer.Context(command, info_name=" ".join(words))
        # Typer puts arguments that are required into braces, unlike everybody else.
        usage = re.sub(r"\{(\S+)\}", r"\1", " ".join(command.collect_usage_pieces(context)))
        parts += [f"## {' '.join(words)}", f"`{' '.join(words)} {usage}`", paragraphs(command.help or "")]
        records = filter(None, (one.get_help_record(context) for one in command.params))
        rows = [f"| `{escape_cell(name)}` | {escape(' '.join(said.split()))} |" for name, said in records]
        if rows:
            parts.append("\n".join(["| argument or option | meaning |", "|---|---|", *rows]))
        parts.append(paragraphs(command.epilog or ""))
    return "\n\n".join(filter(None, parts)) + "\n"


def walk(command: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Yields a command and all below it."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from walk(below, [*words, name])


def paragraphs(text: str) -> str:
    """Returns a help text as paragraphs."""
    blocks = re.split(r"\n\s*\n", text.replace("\b\n", "").strip())
    return "\n\n".join(escape(" ".join(block.split())) for block in blocks)


def pages() -> dict[str, str]:
    """Returns the texts of all pages by name."""
    return {**dict(api_pages()), "commands.md": command_page()}


def main() -> None:
    """Writes the pages, or checks them."""
    written = pages()
    old = {path.name for path in FOLDER.glob("*.md")} - NOT_GENERATED - written.keys()
    if "--check" in sys.argv[1:]:
        stale = [
            name
            for name, text in written.items()
            if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
        ]
        if stale or old:
            sys.exit(f"docs/reference is not up to date ({', '.join([*stale, *sorted(old)])}): run 'make reference'.")
        return
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for name in old:
        (FOLDER / name).unlink()


if __name__ == "__main__":
    main()
