"""What the commands share: the global options, the client for them, and the handling of errors."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import grpc
import typer
from typer.core import TyperGroup

from fedround_client.channel import Target, parse_targets
from fedround_client.client import Client, connect
from fedround_client.command.failures import format_of, print_errors, print_usage_errors
from fedround_client.errors import TokenMissing

_GIVEN = "fedround.global_options"
"""Key of the context's meta: the global options that stand after the command, by name."""
WITHOUT = (
    "Set FEDROUND_TOKEN, or pass --token-file; or --tls-cert, if the server knows you by your certificate."
    " The first start of a server writes the admin's token to DATA_DIR/admin.token, by default"
    " fedround-data/admin.token on the server's machine."
)
"""What is said if there is neither a token nor a certificate."""


class Group(TyperGroup):
    """The `fedround` command: prints expected errors, and accepts the global options after a command, too."""

    def __init__(self, **attributes: Any) -> None:
        """Creates the group, with the commands that typer has made."""
        super().__init__(**attributes)
        names = {field.name for field in fields(Session)}
        _prepare(self.commands.values(), [option for option in self.params if option.name in names])

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Runs the command."""
        with format_of(sys.argv[1:] if args is None else args):
            return super().main(args, *more, **options)

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parses the options before the command."""
        with print_usage_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Invokes the command."""
        try:
            with print_usage_errors(), print_errors():
                return super().invoke(ctx)
        except BrokenPipeError:
            # The reader has closed the pipe; discard what is still buffered.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


@dataclass(frozen=True)
class Session:
    """The global options."""

    server: str
    token: str
    token_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool

    @classmethod
    def of(cls, context: typer.Context) -> Session:
        """Returns the global options of a command line; those after the command override those before it."""
        root = context.find_root()
        given = {**root.params, **root.meta.get(_GIVEN, {})}
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def own_token(self) -> str:
        """Returns the token; empty if there is none.

        Raises:
            OSError: The file cannot be read.
        """
        return self.token_file.read_text(errors="replace").strip() if self.token_file is not None else self.token

    def targets(self) -> tuple[Target, ...]:
        """Returns the targets for the addresses.

        Raises:
            ValueError: An address is not HOST:PORT, or the options of TLS contradict each other.
        """
        insecure = True if self.insecure else None
        return parse_targets(self.server, self.tls_ca, self.tls_cert, self.tls_key, insecure)

    def of_each_address(self) -> list[Session]:
        """Returns the options with each of the addresses alone.

        Raises:
            typer.BadParameter: An address is not HOST:PORT, or the options of TLS contradict each other.
        """
        try:
            return [replace(self, server=target.server) for target in self.targets()]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    def client(self, without: str = WITHOUT) -> Client:
        """Returns the client.

        Args:
            without: What to say if there is neither a token nor a certificate.

        Raises:
            TokenMissing: Neither an option nor the environment has a token or a certificate.
            OSError: A file cannot be read.
        """
        token = self.own_token()
        if not token and self.tls_cert is None:
            raise TokenMissing(
                grpc.StatusCode.UNAUTHENTICATED,
                "TOKEN_MISSING",
                without,
            )
        try:
            return connect(
                self.server,
                token,
                tls_ca=self.tls_ca,
                tls_cert=self.tls_cert,
                tls_key=self.tls_key,
                insecure=True if self.insecure else None,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error


def client_of(context: typer.Context) -> Client:
    """Returns the client for the global options."""
    return Session.of(context).client()


def _prepare(commands: Iterable[Any], options: Sequence[Any]) -> None:
    """Adds the global options to commands and their subcommands, except to those that pass all options on.

    Paragraphs of their help become lines, and names of arguments upper case: typer would print the docstring's line
    breaks in paragraphs behind the first, and newer versions the names of parameters.
    """
    for command in commands:
        if command.help:
            command.help = "\n\n".join(" ".join(block.split()) for block in command.help.split("\n\n"))
        for one in command.params:
            if one.param_type_name == "argument":
                one.metavar = one.metavar or one.name.upper()
        if isinstance(command, TyperGroup):
            _prepare(command.commands.values(), options)
        elif not command.context_settings.get("ignore_unknown_options"):
            command.params = [*command.params, *map(_hidden, options)]


def _hidden(option: Any) -> Any:
    """Returns a global option for use after a command: without a default, and not listed in the command's help."""
    late = copy.copy(option)
    late.hidden, late.expose_value, late.envvar, late.default, late.callback = True, False, None, None, _remember
    return late


def _remember(context: typer.Context, option: Any, value: Any) -> Any:
    if value is not None:
        context.meta.setdefault(_GIVEN, {})[option.name] = value
    return value
