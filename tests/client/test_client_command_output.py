"""Output to terminals and pipes."""

import io
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from client.scripted import TRAINING, USER
from fedround.v1.training_pb2 import Training
from fedround.v1.user_pb2 import Role
from fedround_client.command import output


@pytest.fixture
def new_york(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_local(new_york):
    moment = Timestamp()
    moment.FromDatetime(datetime(2026, 1, 2, 12, 0, tzinfo=UTC))
    assert output.when(moment) == "2026-01-02 07:00:00-05:00"
    assert output.when(Timestamp()) == ""


def test_ids_are_not_wrapped_on_a_narrow_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    found = Training(training_id=TRAINING, actor_id=USER)
    columns = {"TRAINING_ID": lambda one: one.training_id, "NAME": lambda one: "long " * 30, "STATE": lambda one: "X"}
    output.show_all([found], columns, output.Format.TABLE)
    assert TRAINING in terminal.getvalue()


def test_a_closed_pipe_prints_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    program = (
        "import typer, fedround_client.command as command\n"
        "command.app.command('say')(lambda: [typer.echo('x' * 100) for _ in range(10_000)] and None)\n"
        "command.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "say"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def run(program, code=0, **environment):
    paths = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, "say"]
    ended = subprocess.run(command, capture_output=True, text=True, env=paths | environment, check=False)
    assert ended.returncode == code, ended.stderr
    return ended


def test_the_traceback_of_a_defect_is_escaped():
    program = (
        "import fedround_client.command as command\n"
        "@command.app.command('say')\n"
        "def say(): raise RuntimeError('\\x1b[2J\\u202e')\n"
        "command.main()"
    )
    stderr = run(program, code=1).stderr
    assert stderr.splitlines()[-1] == r"RuntimeError: \x1b[2J\u202e"
    assert "\x1b" not in stderr


def test_warnings_of_libraries_are_not_printed():
    program = (
        "import warnings, fedround_client.command as command\n"
        "command.app.command('say')(lambda: warnings.warn('TypedStorage is deprecated', UserWarning))\n"
        "command.main()"
    )
    assert run(program).stderr == ""


@pytest.mark.parametrize("chosen", [{}, {"GRPC_VERBOSITY": "DEBUG"}])
def test_the_log_of_grpc_is_chosen_by_the_user_and_for_no_child(chosen):
    program = "import os, fedround_client; print(os.environ.get('GRPC_VERBOSITY'))"
    assert run(program, **chosen).stdout.strip() == chosen.get("GRPC_VERBOSITY", "None")


def test_printed_lines_are_escaped_and_tables_have_no_trailing_space(capsys):
    output.echo("a\x1bb\nc\u202ed")
    output.echo("e\x7f", err=True)
    output.show_table(("A\x1b", "B"), [("\u202e", ""), (0.123456789, "\n")])
    output.show_fields([("a\x1b", "\x9b"), ("empty", ""), ("zero", 0)])
    printed = capsys.readouterr()
    assert printed.out == ("a\\x1bb\nc\\u202ed\nA\\x1b     B\n\\u202e\n0.123457  \\n\na\\x1b  \\x9b\nzero   0\n")
    assert printed.err == "e\\x7f\n"


def test_an_enum_of_a_newer_server_is_its_number():
    assert output.enum_name(Role, 3) == "CLIENT"
    assert output.enum_name(Role, 99) == "99"


def test_the_live_line_is_escaped_and_only_on_a_terminal(monkeypatch):
    with output.live_line("waiting") as say:
        assert say is None
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.live_line("waiting") as say:
        say("\x9b2J\u202e[red]")
    assert "\x9b" not in terminal.getvalue()
    assert "\u202e" not in terminal.getvalue()
