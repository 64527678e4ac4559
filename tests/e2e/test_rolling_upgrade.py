"""Replicas are upgraded one after the other, while a training goes on through all of them."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import State, federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, Training
from fedround_server.coordinator.server_status import installed_version
from later_version import CONTRACT, EXPAND, NEXT, PROGRAM, VERSION, variables, write_migrations
from replicas import replica, replicas
from servers import Server

pytestmark = [pytest.mark.timeout(200)]
CLIENTS, ROUNDS = 3, 6
MODEL = {"w": np.linspace(-1, 1, 1000, dtype=np.float32)}


class Clients:
    """What participants do in each round, once they may."""

    def __init__(self) -> None:
        self.may_train = [threading.Event() for _ in range(ROUNDS)]

    def train(self, number: int) -> Callable[[State, fr.Round], tuple[State, int]]:
        def train(model: State, round: fr.Round) -> tuple[State, int]:
            assert self.may_train[round.number].wait(100)
            change = np.random.default_rng([number, round.number]).normal(size=1000)
            return {"w": (0.7 * model["w"] + change).astype(np.float32)}, number + 1

        return train

    def allow(self, *rounds: int) -> None:
        for number in rounds:
            self.may_train[number].set()


def alone(folder: Path) -> bytes:
    """Runs the training on one server with SQLite; returns the bytes of the model that it makes."""
    clients = Clients()
    clients.allow(*range(ROUNDS))
    with Server(folder / "alone") as server, federation(server, CLIENTS) as group:
        made = group.run(lambda number: (clients.train(number),), MODEL, target_num_updates=ROUNDS)
        return result(group.actor, made)


def result(actor: fr.Client, training: Training) -> bytes:
    weights: np.ndarray = actor.download_model(training.model_id)["w"]
    return weights.tobytes()


def upgrade(server: Server, migrations: Path) -> None:
    """Stops a server, and starts a later version on its data directory, at its address."""
    server.stop()
    server.program, server.variables = PROGRAM, variables(migrations)
    server.start()


def refused(server: Server) -> str:
    """The one line of a server that must not start."""
    with pytest.raises(AssertionError, match="error: "), server:
        pytest.fail("it has started")
    assert "Traceback" not in server.log
    (line,) = [line for line in server.log.splitlines() if line.startswith("error: ")]
    assert server.log.splitlines()[-1] == line
    return line


def values(database: str, query: str) -> set[object]:
    with psycopg.connect(database) as connection:
        return {value for (value,) in connection.execute(query).fetchall()}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_training_goes_on_while_its_servers_are_upgraded(tmp_path: Path, database: str) -> None:
    expanded = write_migrations(tmp_path / "expanded", EXPAND)
    contracted = write_migrations(tmp_path / "contracted", EXPAND, CONTRACT)
    clients = Clients()
    later = replica(tmp_path, 2, database, program=PROGRAM, variables=variables(contracted))
    with (
        replicas(tmp_path, database) as servers,
        federation(servers[0], CLIENTS, ",".join(server.address for server in servers)) as group,
    ):
        first, second = servers
        made = group.actor.create_training(MODEL, name="t", client_ids=group.ids, target_num_updates=ROUNDS)
        training_id = made.training_id

        def has(version: int) -> bool:
            return bool(group.actor.get_training(training_id).model_version == version)

        ends = [group.take_part(number, clients.train(number)) for number in range(CLIENTS)]
        group.actor.start_training(training_id)
        clients.allow(0)
        until(lambda: has(1))
        # Updates arrive while the first one drains, and while the later version migrates.
        clients.allow(1)
        upgrade(first, expanded)
        clients.allow(2)
        until(lambda: has(3))
        assert values(database, "SELECT version FROM replica") == {VERSION, installed_version()}
        # The second one could not go on.
        line = refused(later)
        assert f"cannot be migrated to {NEXT + 1:04}_later while older servers use it" in line
        assert f":{second.address.rpartition(':')[2]} (version {installed_version()}) first" in line
        clients.allow(3)
        upgrade(second, expanded)
        clients.allow(4)
        until(lambda: has(5))
        # All that are at work can.
        with later:
            clients.allow(5)
            assert [end.result(100).rounds for end in ends] == [ROUNDS] * CLIENTS
        done = group.actor.get_training(training_id)
        assert (done.state, done.model_version) == (TRAINING_STATE_COMPLETED, ROUNDS)
        assert result(group.actor, made) == alone(tmp_path)
    # Both versions have taken updates, and no participant has reported a failure.
    assert values(database, "SELECT written_by FROM round_update") == {None, VERSION}
    assert "participant_failed" not in values(database, "SELECT action FROM audit")
    for server in (first, second, later):
        assert "Traceback" not in server.log
    assert f"newer version of fedround (it has {NEXT + 1:04}_later)" in refused(replica(tmp_path, 3, database))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_older_server_that_was_left_behind_ends(tmp_path: Path, database: str) -> None:
    with Server(tmp_path / "data", database=database) as server:
        with psycopg.connect(database) as migrating:
            # As a later version does while this one is paused for longer than its lease.
            migrating.execute("UPDATE server_state SET oldest_schema = %s", (NEXT,))
            migrating.execute("UPDATE replica SET expire_time = 0")
        assert server.wait() == 1
        assert server.log.splitlines()[-1].startswith("error: a newer version of fedround has migrated the database")
        assert "Traceback" not in server.log
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE server_state SET oldest_schema = %s", (NEXT - 1,))
        server.start()
