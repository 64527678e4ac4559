"""What a log line shows, and what it never does."""

import errno
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from fedround_server import logs
from fedround_server.domain.token import new_token, redact


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_token_and_no_local_variable_is_logged(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    token, secret = new_token(), "a local variable"
    logs.set_up(form, "debug")

    def fail(name: str) -> None:
        raise ValueError(f"no such thing: {name}")

    log = structlog.get_logger("test")
    try:
        fail(token)
    except ValueError:
        log.exception("it failed", field=token, fields=[{"name": token}])
        logging.getLogger("another").exception("with %s and %s", token, secret[:0])
    log.info(token)
    shown = capsys.readouterr().err
    assert "no such thing: fr_..." in shown
    assert token not in shown
    assert shown.count("fr_...") >= 6
    assert secret not in shown
    if form == "json":
        assert [json.loads(line)["level"] for line in shown.splitlines()] == ["error", "error", "info"]


def test_lines_of_ours_and_of_libraries_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("json", "info")
    structlog.get_logger("ours").debug("below the level")
    structlog.get_logger("ours").warning("an event", number=1)
    logging.getLogger("a.library").warning("an event")
    ours, other = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (ours.pop("logger"), other.pop("logger"), ours.pop("number")) == ("ours", "a.library", 1)
    assert ours.pop("timestamp") <= other.pop("timestamp")
    assert ours == other == {"event": "an event", "level": "warning"}


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "call", "code": "OK", "seconds": 1.5, "user_id": "", "names": ["a b", 1], "none": None},
        {"event": "a long event with more than thirty characters", "quoted": "it's", "last": " "},
        {"event": 5},
        {"event": ""},
        {"event": "failed", "exc_info": ValueError("wrong")},
        {"event": "failed", "stack": "a stack", "exception": "a traceback"},
    ],
)
def test_plain_lines_are_those_of_structlog(fields: dict[str, Any]) -> None:
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    line = {"timestamp": "2026-11-30T15:54:05.999387Z", "level": "info", "logger": "test", **fields}
    assert logs.PlainRenderer(renderer)(None, "info", dict(line)) == renderer(None, "info", dict(line))


class FullDisk(io.StringIO):
    """A stream to a disk without room."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")


def test_a_line_that_cannot_be_written_is_lost() -> None:
    logs.set_up("json", "info", FullDisk())
    structlog.get_logger("test").info("an event")


def test_what_is_no_token_stays() -> None:
    token = new_token()
    assert redact(f"a {token}, b {token[:30]}") == "a fr_..., b fr_..."
    for text in ("fr_ward", "training fr_hospital of ward 7", "x" * 100):
        assert redact(text) == text
