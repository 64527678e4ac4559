"""Failures of commands: one line on stderr, or one JSON object for those who asked for JSON, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, NoReturn

import grpc
import typer

from fedround_client.audit_entry import AuditBroken
from fedround_client.command.output import echo
from fedround_client.errors import FedroundError
from fedround_client.exit_codes import ExitCode, code_of_error
from fedround_client.printable import one_line
from fedround_client.tensor_types import TensorError

_as_json: ContextVar[bool] = ContextVar("errors_as_json", default=False)


@contextmanager
def format_of(words: Sequence[str]) -> Iterator[None]:
    """Prints errors in the block as JSON if the command line has `--format json`, whether or not it can be parsed."""
    wanted = "--format=json" in words or ("--format", "json") in pairwise(words)
    token = _as_json.set(wanted)
    try:
        yield
    finally:
        _as_json.reset(token)


def fail(
    reason: str,
    message: str,
    *,
    code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION,
    metadata: Mapping[str, str] | None = None,
    exit_code: int = ExitCode.FAILED,
) -> NoReturn:
    """Prints the error and exits.

    Args:
        reason: The reason for programs, in UPPER_SNAKE_CASE.
        message: What happened and what to do next, for people.
        code: The status code that fits, for programs that know those of the server.
        metadata: More about the reason, by name.
        exit_code: The exit code.
    """
    _fail(FedroundError(code, reason, message, metadata), exit_code)


@contextmanager
def print_errors(exit_code: int | None = None) -> Iterator[None]:
    """Prints expected errors, and exits with the code; by default with the one for the error.

    It exits with 1 if the audit log is broken.
    """
    try:
        yield
    except FedroundError as error:
        _fail(error, exit_code or code_of_error(error))
    except TensorError as error:
        fail("MODEL_FORMAT", str(error), code=grpc.StatusCode.INVALID_ARGUMENT, exit_code=exit_code or 1)
    except AuditBroken as error:
        metadata = {"sequence": str(error.sequence), "chain": error.chain}
        fail("AUDIT_BROKEN", str(error), code=grpc.StatusCode.DATA_LOSS, metadata=metadata)
    except TimeoutError as error:
        code = exit_code or code_of_error(error)
        fail("TIMEOUT", str(error), code=grpc.StatusCode.DEADLINE_EXCEEDED, exit_code=code)
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail("FILE", text, exit_code=exit_code or 1)


@contextmanager
def print_usage_errors() -> Iterator[None]:
    """Prints errors of the command line as JSON, and exits with 2; leaves others, escaped, to typer."""
    try:
        yield
    except Exception as error:
        # Typer has had several names for its base class; they all have this method.
        text: Any = getattr(error, "format_message", None)
        if text is None:
            raise
        if not _as_json.get():
            # Typer prints it: an argument may be the name of another user's file.
            vars(error)["format_message"] = lambda: one_line(text())
            raise
        fail("USAGE", text(), code=grpc.StatusCode.INVALID_ARGUMENT, exit_code=ExitCode.USAGE)


def _fail(error: FedroundError, exit_code: int) -> NoReturn:
    if _as_json.get():
        fields: dict[str, Any] = {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
        }
        if error.field_violations:
            fields["field_violations"] = error.field_violations
        if error.retry_after is not None:
            fields["retry_after"] = error.retry_after
        if error.address or error.replica:
            fields |= {"address": error.address, "replica": error.replica}
        echo(json.dumps(fields), err=True)
    else:
        echo(f"error: {error}", err=True)
    raise typer.Exit(exit_code)
