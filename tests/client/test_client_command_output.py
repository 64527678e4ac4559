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
