"""What the commands share: the client for the global options, and errors as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import typer
from typer.core import TyperGroup

from fedround_client.client import Client, connect
from fedround_client.errors import FedroundError, TokenMissing
from fedround_client.tensor_types import TensorError


class Group(TyperGroup):
    """Prints expected errors as one line on stderr, and exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Invokes the command."""
        try:
            with print_errors():
                return super().invoke(ctx)
        except BrokenPipeError:
            # The reader has closed the pipe; discard what is still buffered.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


@contextmanager
def print_errors() -> Iterator[None]:
    """Prints expected errors as one line on stderr, and exits with 1."""
    try:
        yield
    except FedroundError as error:
        fail(str(error))
    except TensorError as error:
        fail(f"MODEL_FORMAT: {error}")
    except TimeoutError as error:
        fail(f"TIMEOUT: {error}")
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"FILE: {error}")


def fail(text: str) -> NoReturn:
    """Prints the error and exits with 1."""
    typer.echo("error: " + " ".join(text.split()), err=True)
    raise typer.Exit(1)


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

    def client(self) -> Client:
        """Returns the client.

        Raises:
            TokenMissing: Neither an option nor the environment has a token or a certificate.
            OSError: A file cannot be read.
        """
        token = self.token_file.read_text().strip() if self.token_file is not None else self.token
        if not token and self.tls_cert is None:
            raise TokenMissing(
                grpc.StatusCode.UNAUTHENTICATED,
                "TOKEN_MISSING",
                "Set FEDROUND_TOKEN, or pass --token-file; or --tls-cert, if the server knows you by your certificate."
                " The first start of a server writes the admin's token to DATA_DIR/admin.token, by default"
                " fedround-data/admin.token on the server's machine.",
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
    session: Session = context.find_object(Session) or context.obj
    return session.client()
