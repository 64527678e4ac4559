"""A server takes up what was left by one that was killed at a known moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import load

from calls import MODEL, Person, kinds, model_file, until
from e2e.data_dirs import DataDirectory, fill_data_dir
from fedround.v1 import event_pb2, model_pb2, training_pb2
from fedround_server.domain.policy import RoundPolicy
from servers import Server

NOW = datetime.now(UTC)
# They wait for real seconds, so `make test` runs them on one database.
ON_BOTH_AT_LENGTH = pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.chaos)], indirect=True
)


@contextmanager
def taken_up(data_dir: Path, database: str, actor: str) -> Iterator[Person]:
    """The actor of a server that was started on what was left."""
    with Server(data_dir, database=database) as server, grpc.insecure_channel(server.address) as channel:
        yield Person(channel, actor)


def log(person: Person, training_id: str) -> list[event_pb2.Event]:
    """All events, up to the end of the training."""
    return list(person.subscribe(training_id, resume_after_sequence={training_id: 0}))


def download(person: Person, model_id: str) -> dict[str, np.ndarray]:
    messages = person.models.DownloadModel(model_pb2.DownloadModelRequest(model_id=model_id))
    return load(b"".join(message.chunk for message in messages))


def test_a_closed_round_is_aggregated(data_dir: Path, database: str) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, str, str]:
        actor, (first, second), training = await directory.running(2)
        assert not await directory.submit(training, 0, first, model_file(1))
        assert await directory.submit(training, 0, second, model_file(3))
        # An aggregation was in progress, and has left its part.
        with directory.blobs.files.stage() as (_, part):
            part.write_bytes(model_file()[:50])
        return actor, training.training_id, training.model_id

    actor_id, training_id, model_id = fill_data_dir(data_dir, database, NOW, prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        assert kinds(log(actor, training_id))[-2:] == ["round_closed", "training_finished"]
        assert actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED
        after = download(actor, model_id)
        assert np.array_equal(after["weight"], MODEL["weight"] + 2)
        assert np.array_equal(after["bias"], MODEL["bias"] + 2)
    assert list((data_dir / "tmp").iterdir()) == []


def test_reports_that_closed_a_round_are_averaged(data_dir: Path, database: str) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, str]:
        actor, (first, second), training = await directory.running(2, metric_names=("accuracy",))
        for client in (first, second):
            await directory.submit(training, 0, client, model_file(1))
        await directory.store.rounds.commit(training.training_id, 0, 1, directory.keep(model_file(1)), NOW)
        for client in (first, second):
            await directory.submit(training, 1, client)
        return actor, training.training_id

    actor_id, training_id = fill_data_dir(data_dir, database, NOW, prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        *_, closed, finished = log(actor, training_id)
        assert (closed.round_closed.round, dict(closed.round_closed.metrics)) == (1, {"accuracy": 0.5})
        assert finished.training_finished.model_version == 1


def test_a_closed_round_whose_files_are_gone_waits_for_its_participants_again(data_dir: Path, database: str) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, str, str]:
        actor, (client,), training = await directory.running(1)
        await directory.submit(training, 0, client, model_file(1))
        directory.blobs.files.local_path(directory.keep(model_file(1))).unlink()
        return actor, client, training.training_id

    actor_id, client, training_id = fill_data_dir(data_dir, database, NOW, prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        until(lambda: actor.get(training_id).updates_arrived == 0)
        Person(actor.channel, client).submit(training_id, model_file(1))
        assert kinds(log(actor, training_id)) == [
            *("training_started", "round_started", "update_accepted"),
            *("round_extended", "update_lost", "round_started", "update_accepted"),
            *("round_closed", "training_finished"),
        ]
        assert actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED


def test_an_open_round_goes_on_with_what_it_had(data_dir: Path, database: str) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, list[str], str]:
        actor, clients, training = await directory.running(2)
        await directory.submit(training, 0, clients[0], model_file(1))
        return actor, clients, training.training_id

    actor_id, clients, training_id = fill_data_dir(data_dir, database, NOW, prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        assert actor.get(training_id).updates_arrived == 1
        Person(actor.channel, clients[1]).submit(training_id, model_file(3))
        assert kinds(log(actor, training_id))[-1] == "training_finished"


def test_a_deadline_that_passed_meanwhile_has_its_effect_before_any_call_is_served(
    data_dir: Path, database: str
) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, str]:
        policy = RoundPolicy(deadline=timedelta(minutes=30))
        actor, (first, _), training = await directory.running(2, round_policy=policy)
        await directory.submit(training, 0, first, model_file(1))
        return actor, training.training_id

    actor_id, training_id = fill_data_dir(data_dir, database, NOW - timedelta(hours=1), prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        after = actor.get(training_id)
        assert (after.state, after.error.reason) == (training_pb2.TRAINING_STATE_ERROR, "DEADLINE_MISSED")
        assert "1 of 2 updates" in after.error.message
        assert kinds(log(actor, training_id)) == [
            "training_started",
            "round_started",
            "update_accepted",
            "training_failed",
        ]


@ON_BOTH_AT_LENGTH
def test_a_deadline_ahead_is_kept(data_dir: Path, database: str) -> None:
    now = datetime.now(UTC)

    async def prepare(directory: DataDirectory) -> tuple[str, str]:
        actor, _, training = await directory.running(1, round_policy=RoundPolicy(deadline=timedelta(seconds=3)))
        return actor, training.training_id

    actor_id, training_id = fill_data_dir(data_dir, database, now, prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        failed = log(actor, training_id)[-1]
        assert failed.training_failed.reason == "DEADLINE_MISSED"
        assert failed.create_time.ToDatetime(UTC) >= now + timedelta(seconds=3)


@ON_BOTH_AT_LENGTH
def test_a_round_that_follows_has_its_deadline(data_dir: Path, database: str) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, str]:
        policy = RoundPolicy(deadline=timedelta(seconds=2))
        actor, (client,), training = await directory.running(1, target_num_updates=2, round_policy=policy)
        await directory.submit(training, 0, client, model_file(1))
        return actor, training.training_id

    # Closed in time, an hour ago: only the round that is opened now can miss its deadline.
    actor_id, training_id = fill_data_dir(data_dir, database, NOW - timedelta(hours=1), prepare)
    with taken_up(data_dir, database, actor_id) as actor:
        *_, opened, failed = log(actor, training_id)
        assert opened.round_started.round == 1
        assert failed.training_failed.reason == "DEADLINE_MISSED"
        assert "reached its deadline" in failed.training_failed.message
        assert failed.create_time.ToDatetime(UTC) >= opened.round_started.deadline.ToDatetime(UTC)
