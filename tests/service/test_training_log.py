"""What an operator learns from the log alone: why a round does not close, and what happened in a training."""

import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import Person, fails_with, model_file, until
from fedround.v1 import round_pb2, training_pb2
from fedround_server.coordinator.change_log import LINES
from servers import Server

# Rounds that wait are logged after a minute, and looked at every five seconds.
PROGRAM = """
import sys
from datetime import timedelta
from fedround_server import __main__
from fedround_server.coordinator import housekeeping, waiting_log

waiting_log.FIRST = timedelta(seconds=0.3)
housekeeping.RECONCILIATION_INTERVAL = timedelta(seconds=0.1)
sys.exit(__main__.main())
"""
NAME = "site 2\u202e <b>"


def lines(server: Server, **values: Any) -> list[dict[str, Any]]:
    """The lines of the log that have these values."""
    # The last one may be incomplete.
    found = [json.loads(line) for line in server.log.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in found if values.items() <= line.items()]


@pytest.fixture
def log_server(data_dir: Path) -> Any:
    options = ("--log-format", "json")
    with Server(data_dir, options=options, program=("-c", PROGRAM)) as server:
        yield server


def test_why_round_2_does_not_close(log_server: Server) -> None:
    server = log_server
    with grpc.insecure_channel(server.address) as channel:
        admin = Person(channel, server.admin_token)
        actor = admin.make(server.address, "ACTOR")
        clients = [admin.make(server.address, "CLIENT", name) for name in ("site 1", NAME, "site 3")]
        first, second, third = clients
        made = actor.create(
            client_ids=[client.user_id for client in clients], target_num_updates=4, metric_names=[], name="private"
        )
        training_id = actor.start(made.training_id).training_id
        for number in (0, 1):
            until(lambda number=number: actor.get(training_id).round == number)
            for client in clients:
                client.submit(training_id, model_file(number), number=number)
        until(lambda: actor.get(training_id).round == 2)
        events = first.subscribe()
        first.submit(training_id, model_file(2), number=2)
        with fails_with("DATA_LOSS", "DIGEST_MISMATCH"):
            second.submit(training_id, model_file(2), number=2, sha256="0" * 64)
        failure = round_pb2.ReportFailureRequest(
            training_id=training_id, round=2, reason="OUT_OF_MEMORY", message="private"
        )
        third.rounds.ReportFailure(failure)
        about = {"training_id": training_id, "round": 2}
        until(lambda: lines(server, event="round_waits", **about, failed=1))
        events.cancel()

        # The call that made it has its id, too.
        assert lines(
            server, event="call", method="/fedround.v1.TrainingService/CreateTraining", training_id=training_id
        )
        # Who is asked, and by when.
        (opened,) = lines(server, event="round_opened", **about)
        assert (opened["kind"], opened["version"], opened["members"]) == ("TRAIN", 2, 3)
        assert opened["level"] == "info"
        # Who it waits for.
        waits = lines(server, event="round_waits", **about, failed=1)[-1]
        assert (waits["waits_for"], waits["missing"], waits["arrived"], waits["expected"]) == (
            "ALL_UPDATES",
            [NAME],
            1,
            2,
        )
        assert (waits["connected"], waits["registered"]) == (1, 3)
        # It does not fill the log.
        assert len(lines(server, event="round_waits", **about)) < 12
        # Names are escaped.
        assert "\u202e" not in server.log
        # What came and was rejected.
        (rejected,) = lines(server, event="call", **about, reason="DIGEST_MISMATCH")
        assert (rejected["user_id"], rejected["code"]) == (second.user_id, "DATA_LOSS")
        (failed,) = lines(server, event="participant_failed", **about)
        assert (failed["participant_id"], failed["reason"]) == (third.user_id, "OUT_OF_MEMORY")
        accepted = lines(server, event="call", **about, method="/fedround.v1.RoundService/SubmitUpdate", code="OK")
        assert [one["user_id"] for one in accepted] == [first.user_id]
        # What one call has bound is not said of the next one.
        assert not any("reason" in one for one in lines(server, event="call", code="OK"))

        # What happens then.
        second.submit(training_id, model_file(2), number=2)
        until(lambda: actor.get(training_id).round == 3)
        (closed,) = lines(server, event="round_closed", **about)
        assert (closed["arrived"], closed["failed"], closed["members"]) == (2, 1, 3)
        (done,) = lines(server, event="round_done", **about)
        assert (done["kind"], done["num_updates"]) == ("TRAIN", 2)
        (version,) = lines(server, event="version_made", **about)
        assert version["version"] == 3
        until(lambda: lines(server, event="round_aggregated", **about))
        (aggregated,) = lines(server, event="round_aggregated", **about)
        assert aggregated["updates"] == 2
        # A background task has nothing of the call that started it.
        assert "user_id" not in aggregated
        assert "user_id" not in version
        for client in clients:
            client.submit(training_id, model_file(3), number=3)
        until(lambda: actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
        (completed,) = lines(server, event="training_completed", training_id=training_id)
        assert (completed["version"], completed["stopped"]) == (4, False)
    # Names of trainings, messages and tokens are not in the log.
    assert "private" not in server.log
    assert server.admin_token not in server.log


def test_a_missed_deadline_and_its_repetition(log_server: Server) -> None:
    server = log_server
    with grpc.insecure_channel(server.address) as channel:
        admin = Person(channel, server.admin_token)
        actor, client = admin.make(server.address, "ACTOR"), admin.make(server.address, "CLIENT")
        policy = training_pb2.RoundPolicy(max_retries=1)
        policy.deadline.FromMilliseconds(300)
        policy.on_missed = training_pb2.ON_MISSED_RETRY
        made = actor.create(client_ids=[client.user_id], round_policy=policy, target_num_updates=1)
        training_id = actor.start(made.training_id).training_id
        until(lambda: actor.get(training_id).state == training_pb2.TRAINING_STATE_ERROR)
        events = [one["event"] for one in lines(server, training_id=training_id, logger="fedround.training")]
        assert [one for one in events if one != "round_waits"] == [
            "training_created",
            "clients_registered",
            "training_started",
            "round_opened",
            "deadline_passed",
            "round_extended",
            "deadline_passed",
            "round_abandoned",
            "training_failed",
        ]
        (opened,) = lines(server, event="round_opened", training_id=training_id)
        assert opened["deadline"].startswith("20")
        (failed,) = lines(server, event="training_failed", training_id=training_id)
        assert failed["level"] == "warning"


def test_every_event_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/logging.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*)\|", page, re.MULTILINE)
    shown = {event: (level, set(keys.replace(",", " ").split())) for event, level, keys in rows}
    for event, line in LINES.items():
        level, keys = shown.pop(event)
        lists = {"user_ids", "update_ids"} & set(line.keys)
        assert level == line.level, event
        assert keys == {*line.keys, *filter(None, [line.subject]), *(["count"] if lists else [])}, event
    assert shown.keys() == {"call", "round_waits", "deadline_passed", "round_taken_over", "round_aggregated"}


def test_ids_that_are_none_are_not_logged(log_server: Server) -> None:
    with grpc.insecure_channel(log_server.address) as channel:
        admin = Person(channel, log_server.admin_token)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "training_id"):
            admin.get("no id but a long text")
        until(lambda: lines(log_server, event="call", reason="FIELD_INVALID"))
        assert "long text" not in log_server.log
