"""What a server or another user says reaches no terminal and no log with control or format characters."""

import logging
import traceback
import unicodedata

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.scripted import USER, error_status
from fedround_client import AuditBroken, FedroundError
from fedround_client.errors import TrainingNotFound
from fedround_client.logs import get_logger
from fedround_client.printable import one_line, printable

pytestmark = pytest.mark.timeout(30)

HOSTILE = "\x1b[2Jclear\x9b31m \u202egnp.exe\u2066 \u200b\u200f\u061c\u2028\x7f\r\nnext"


def is_safe(text):
    return all(unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text)


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_a_terminal_obeys_or_hides_is_left(text):
    assert is_safe(printable(text))
    assert is_safe(one_line(text))
    printable(text).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ward 7", "ward 7"),
        (
            "Müller 東京 \N{IDEOGRAPHIC SPACE}x \N{GRINNING FACE}",
            "Müller 東京 \N{IDEOGRAPHIC SPACE}x \N{GRINNING FACE}",
        ),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202eabc\u2069", r"\u202eabc\u2069"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
    ],
)
def test_characters_are_escaped_visibly(text, shown):
    assert printable(text) == shown


def test_errors_of_the_server_are_one_line_and_keep_the_message(server):
    call = server.run(server.client.get_user, USER)
    violations = {"name": HOSTILE}
    server.fail("GetUser", error_status(grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND", HOSTILE, violations=violations))
    error = call.exception(20)
    assert isinstance(error, FedroundError)
    assert error.message == HOSTILE
    # Also the causes, which a traceback would print as they are.
    assert is_safe("".join(traceback.format_exception(error)).replace("\n", ""))
    assert "\\x1b[2Jclear" in str(error)


def test_a_broken_audit_log_is_described_in_one_line():
    assert is_safe(str(AuditBroken(1, HOSTILE)))


def test_log_lines_of_the_sdk_are_escaped(caplog):
    error = TrainingNotFound(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND", HOSTILE)
    logger = get_logger("fedround_client.test")
    get_logger("fedround_client.test")
    logger.warning("Round %d of %s: %s", 3, HOSTILE, error)
    (record,) = caplog.records
    assert is_safe(record.getMessage())
    assert record.getMessage().startswith("Round 3 of \\x1b[2Jclear")
    assert len(logger.filters) == 1


def test_every_logger_of_the_sdk_escapes():
    import fedround_client  # noqa: F401 -- creates the loggers

    loggers = [
        logger
        for name, logger in logging.Logger.manager.loggerDict.items()
        if name.startswith("fedround_client.") and isinstance(logger, logging.Logger) and ".demo" not in name
    ]
    assert loggers
    assert [logger.name for logger in loggers if not logger.filters] == []
