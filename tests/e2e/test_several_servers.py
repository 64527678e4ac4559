"""Several servers on one PostgreSQL database: any of them answers any call, and does what another one has left."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

import fedround_client as fr
from calls import TIMEOUT, Person, download, fails_with, kinds, model_file, new_id, read_error, until
from conftest import public_folder
from fedround.v1 import round_pb2, training_pb2, user_pb2
from postgres import Postgres, create_database
from replicas import AHEAD, pause, person, replica, replicas, resume
from servers import MODULE, Server, descendants

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
ME = user_pb2.GetMyselfRequest()


@dataclass
class Users:
    """An admin, an actor and a client, each at both of two servers."""

    admin: list[Person]
    actor: list[Person]
    client: list[Person]

    def start(self, at: int = 0, **spec: Any) -> training_pb2.Training:
        made = self.actor[at].create(client_ids=[self.client[0].user_id], **spec)
        self.actor[at].start(made.training_id)
        return made


def users(servers: list[Server]) -> Users:
    token = servers[0].admin_token
    admin = Person(grpc.insecure_channel(servers[0].address), token)
    tokens = [token, *(admin.make(servers[0].address, role).token for role in ("ACTOR", "CLIENT"))]
    return Users(*([person(server, token) for server in servers] for token in tokens))


@pytest.fixture
def two(tmp_path: Path, database: str) -> Iterator[list[Server]]:
    with replicas(tmp_path, database) as servers:
        yield servers


def is_done(actor: Person, training_id: str, version: int = 1) -> bool:
    return actor.get(training_id).model_version == version


def test_errors_name_the_server_also_to_clients_with_one_address(two: list[Server]) -> None:
    with fr.connect(two[1].address, two[0].admin_token) as client, pytest.raises(fr.TrainingNotFound) as caught:
        client.get_training(new_id())
    assert caught.value.replica.endswith(two[1].address.removeprefix("127.0.0.1"))
    assert str(caught.value).endswith(f"(replica {caught.value.replica})")


def test_a_training_goes_on_through_either_server(two: list[Server]) -> None:
    here, there = 0, 1
    found = users(two)
    training = found.start(here, target_num_updates=2)
    with_events = found.client[there].subscribe(training.training_id)
    assert kinds(with_events.next(1)) == ["round_started"]
    found.client[there].submit(training.training_id, model_file(1))
    # The next round is opened by the server that closed this one, and told to subscribers of both.
    elsewhere = found.client[here].subscribe(training.training_id, resume_after_sequence={training.training_id: 1})
    assert kinds(with_events.next(2)) == ["round_closed", "round_started"]
    found.client[here].submit(training.training_id, model_file(3), 1)
    assert kinds(with_events.next(2)) == ["round_closed", "training_finished"]
    assert "training_finished" in kinds(list(elsewhere))
    for actor in found.actor:
        assert is_done(actor, training.training_id, 2)
        assert download(actor, training.model_id)[1] == download(found.actor[0], training.model_id)[1]


def test_users_see_new_trainings_of_the_other_server(two: list[Server]) -> None:
    found = users(two)
    everything = found.client[1].subscribe()
    training = found.start(0)
    assert {event.training_id for event in everything.next(1)} == {training.training_id}


def test_a_revoked_token_ends_calls_at_the_other_server(two: list[Server]) -> None:
    found = users(two)
    training = found.start()
    events = found.client[1].subscribe(training.training_id)
    (started,) = events.next(1)
    assert started.HasField("round_started")
    user_id = found.client[0].user_id
    (token,) = found.admin[0].users.GetUser(user_pb2.GetUserRequest(user_id=user_id)).user.tokens
    found.admin[0].users.RevokeToken(user_pb2.RevokeTokenRequest(user_id=user_id, token_id=token.token_id))
    with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
        next(events)

    def is_rejected() -> bool:
        try:
            found.client[1].users.GetMyself(ME)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
        return False

    until(is_rejected)


def test_a_second_program_of_a_user_is_rejected_at_the_other_server(two: list[Server]) -> None:
    found = users(two)
    training = found.start()
    first = found.client[0].subscribe(training.training_id, session_id=new_id())
    first.next(1)

    # One id for all attempts: an attempt does not reject the next one.
    request = round_pb2.SubscribeRequest(training_id=training.training_id, session_id=new_id())

    def is_rejected() -> bool:
        other = found.client[1].rounds.Subscribe(request, timeout=TIMEOUT)
        try:
            next(other)
        except grpc.RpcError as error:
            return read_error(error).reason == "ALREADY_PARTICIPATING"
        other.cancel()
        return False

    until(is_rejected)


def test_a_round_that_waits_for_connections_counts_those_of_both_servers(two: list[Server]) -> None:
    found = users(two)
    second = found.admin[0].make(two[0].address, "CLIENT")
    ids = [found.client[0].user_id, second.user_id]
    made = found.actor[0].create(client_ids=ids, cohort=training_pb2.Cohort(min_available=2))
    found.actor[0].start(made.training_id)
    streams = [one.subscribe(made.training_id) for one in (found.client[0], person(two[1], second.token))]
    for events in streams:
        assert next(event for event in events if event.HasField("round_started"))


def test_a_server_that_drains_leaves_its_subscribers_and_rounds_to_the_other(two: list[Server]) -> None:
    found = users(two)
    training = found.start()
    events = found.client[0].subscribe(training.training_id)
    (started,) = events.next(1)
    two[0].stop()
    assert kinds(list(events)) == ["going_away"]
    cursor = {training.training_id: started.sequence}
    again = found.client[1].subscribe(training.training_id, resume_after_sequence=cursor)
    found.client[1].submit(training.training_id, model_file(1))
    assert kinds(again.next(2)) == ["round_closed", "training_finished"]
    two[0].start()


@pytest.mark.chaos
def test_the_deadline_of_a_round_passes_although_its_opener_is_dead(two: list[Server]) -> None:
    found = users(two)
    policy = training_pb2.RoundPolicy()
    policy.deadline.seconds = 3
    training = found.start(round_policy=policy)
    two[0].kill()
    until(lambda: found.actor[1].get(training.training_id).state == training_pb2.TRAINING_STATE_ERROR)
    assert found.actor[1].get(training.training_id).error.reason == "DEADLINE_MISSED"
    two[0].start()


@pytest.mark.chaos
@pytest.mark.parametrize("point", ["aggregation.found", "aggregation.computed", "aggregation.adopted"])
def test_the_aggregation_of_a_killed_server_is_taken_over(tmp_path: Path, database: str, point: str) -> None:
    with replica(tmp_path, 0, database) as first, replica(tmp_path, 1, database, failpoint=point) as second:
        found = users([first, second])
        training = found.start()
        found.client[1].submit(training.training_id, model_file(1))
        until(lambda: is_done(found.actor[0], training.training_id))
        actions = [action for action, _ in recorded(database, training.training_id)]
        assert (actions.count("version_made"), actions.count("round_done")) == (1, 1)
        assert "round_taken_over" in first.log
        second.wait()
        second.failpoint = ""
        second.start()


@pytest.mark.chaos
def test_a_server_that_was_paused_for_longer_than_its_lease_commits_nothing_of_before(
    tmp_path: Path, database: str
) -> None:
    with replica(tmp_path, 0, database) as first, replica(tmp_path, 1, database, program=MODULE) as second:
        found = users([first, second])
        training = found.start()
        workers = descendants(second.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        # It closes the round, and waits for its worker.
        found.client[1].submit(training.training_id, model_file(1))
        pause(second)
        try:
            until(lambda: is_done(found.actor[0], training.training_id))
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            resume(second)
        until(lambda: "the lease of the replica" in second.log)
        until(lambda: succeeds(lambda: found.actor[1].get(training.training_id)))
        again = found.start(1)
        found.client[0].submit(again.training_id, model_file(2))
        until(lambda: is_done(found.actor[1], again.training_id))
        actions = [action for action, _ in recorded(database, training.training_id)]
        assert (actions.count("version_made"), actions.count("round_done")) == (1, 1)
        assert "Traceback" not in second.log


@pytest.mark.chaos
def test_the_clock_of_a_servers_machine_does_not_matter(tmp_path: Path, database: str) -> None:
    with (
        replica(tmp_path, 0, database) as first,
        replica(tmp_path, 1, database, program=AHEAD) as ahead,
    ):
        found = users([first, ahead])
        policy = training_pb2.RoundPolicy()
        policy.deadline.seconds = 600
        training = found.start(0, round_policy=policy, target_num_updates=2)
        found.client[1].submit(training.training_id, model_file(1))
        until(lambda: is_done(found.actor[0], training.training_id))
        times = [time for _, time in recorded(database, training.training_id)]
        assert times[-1] - times[0] < 300_000_000
        current = found.actor[1].get(training.training_id)
        assert current.state == training_pb2.TRAINING_STATE_ONGOING
        assert ahead.log.count("the clock of this machine is 3600 s ahead of that of the database") == 1
        assert "the clock of this machine" not in first.log


@pytest.mark.chaos
def test_a_restart_of_postgresql_ends_neither(tmp_path: Path, database: str) -> None:
    with (
        public_folder() as folder,
        Postgres(folder / "postgres") as postgres,
        replicas(tmp_path, create_database(postgres.uri)) as servers,
    ):
        found = users(servers)
        training = found.start()
        postgres.stop()
        postgres.start()
        # Each of its connections to the database was lost.
        until(lambda: succeeds(lambda: found.client[1].submit(training.training_id, model_file(1))))
        until(lambda: has(found.actor, training.training_id, 1))
        assert "Traceback" not in servers[0].log + servers[1].log


def succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


def has(actors: list[Person], training_id: str, version: int) -> bool:
    """Whether a training has so many versions, as all servers see it."""
    try:
        return all(is_done(actor, training_id, version) for actor in actors)
    except grpc.RpcError:
        return False


def recorded(database: str, training_id: str) -> list[tuple[str, int]]:
    """The actions of the audit log about a training, and when they were, in microseconds."""
    with psycopg.connect(database) as connection:
        query = "SELECT action, time FROM audit WHERE training_id = %s ORDER BY time"
        return connection.execute(query, (training_id,)).fetchall()
