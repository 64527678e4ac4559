"""Clients with two addresses, against two real servers: one drains, one is killed, both come back.

The second one runs on a copy of the data directory of the first: it knows the same users and trainings.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
import forked
from servers import Server

pytestmark = pytest.mark.timeout(90)

OPTIONS = ("--heartbeat-seconds", "0.1", "--grace-seconds", "5")
UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Pair:
    """Two servers with the same users and trainings."""

    def __init__(self, servers: tuple[Server, Server], training_id: str) -> None:
        self.servers = servers
        self.training_id = training_id
        self.token = servers[0].admin_token
        self.addresses = ",".join(server.address for server in servers)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    first = Server(tmp_path / "first", options=(*OPTIONS, "--replica-name", "first"))
    with first:
        with fr.connect(first.address, first.admin_token) as admin:
            training = admin.create_training({"w": np.zeros(3, np.float32)}, name="t", target_num_updates=1)
        first.stop()
        shutil.copytree(tmp_path / "first", tmp_path / "second")
        first.start()
        with Server(tmp_path / "second", options=(*OPTIONS, "--replica-name", "second")) as second:
            yield Pair((first, second), training.training_id)


def test_a_subscription_outlives_each_replica(pair: Pair) -> None:
    first, second = pair.servers
    beats: list[float] = []
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            for _ in client.watch(pair.training_id, heartbeats=True):
                beats.append(time.monotonic())
        except fr.ClientClosed:
            pass
        except BaseException as error:
            failures.append(error)

    def goes_on() -> None:
        known, limit = len(beats), time.monotonic() + 15
        while len(beats) < known + 3:
            assert time.monotonic() < limit
            assert not failures
            time.sleep(0.02)

    with fr.connect(pair.addresses, pair.token) as client:
        thread = threading.Thread(target=follow)
        thread.start()
        goes_on()
        first.stop()
        goes_on()
        first.start()
        second.kill()
        goes_on()
        second.start()
        first.kill()
        goes_on()
        first.start()
    thread.join(10)
    assert not failures
    assert not thread.is_alive()


def test_calls_go_on_while_replicas_are_killed(pair: Pair) -> None:
    first, second = pair.servers
    with fr.connect(pair.addresses, pair.token) as client:
        for server in (first, second, first):
            server.kill()
            for _ in range(4):
                assert client.get_training(pair.training_id).training_id == pair.training_id
            server.start()


def test_the_command_says_which_replica_answered(pair: Pair) -> None:
    ended = forked.run(
        "--server", pair.addresses, "training", "show", UNKNOWN, environment={"FEDROUND_TOKEN": pair.token}
    )
    assert ended.returncode != 0
    as_json = forked.run(
        *("--server", pair.addresses, "training", "show", UNKNOWN, "--format", "json"),
        environment={"FEDROUND_TOKEN": pair.token},
    )
    assert json.loads(as_json.stderr)["replica"] in ("first", "second")
    named = [f"(replica {name} at {one.address})" for name, one in zip(("first", "second"), pair.servers, strict=True)]
    assert sum(name in ended.stderr for name in named) == 1


def test_health_and_doctor_ask_each_replica(pair: Pair) -> None:
    first, second = pair.servers
    ended = forked.run("--server", pair.addresses, "health", environment={})
    assert ended.stdout.splitlines() == [f"{first.address} SERVING", f"{second.address} SERVING"]
    second.kill()
    ended = forked.run("--server", pair.addresses, "health", environment={})
    assert (ended.returncode, ended.stdout.splitlines()) == (
        0,
        [f"{first.address} SERVING", f"{second.address} UNAVAILABLE"],
    )
    ended = forked.run("--server", pair.addresses, "doctor", environment={"FEDROUND_TOKEN": pair.token})
    assert ended.returncode == 1
    assert f"health {first.address}" in ended.stdout
    assert f"connection {second.address}" in ended.stdout
    assert "of admin" in ended.stdout
    assert f"server version {first.address}" in ended.stdout
    second.start()


@pytest.mark.chaos
def test_a_subscription_leaves_a_replica_that_hangs(pair: Pair) -> None:
    beats: list[float] = []

    def follow() -> None:
        with suppress(fr.ClientClosed):
            for _ in client.watch(pair.training_id, heartbeats=True):
                beats.append(time.monotonic())

    def longest_silence(seconds: float) -> float:
        begin = len(beats)
        time.sleep(seconds)
        times = [*beats[begin - 1 :], time.monotonic()]
        return max(later - earlier for earlier, later in pairwise(times))

    with fr.connect(pair.addresses, pair.token) as client:
        thread = threading.Thread(target=follow)
        thread.start()
        while not beats:
            time.sleep(0.02)
        silences = []
        for server in pair.servers:
            os.kill(server.pid, signal.SIGSTOP)
            silences.append(longest_silence(20))
            os.kill(server.pid, signal.SIGCONT)
            time.sleep(1)
    thread.join(10)
    # One of the two was the one that it was subscribed to.
    assert 5 < max(silences) < 15


def test_strangers_do_not_learn_the_name(pair: Pair) -> None:
    with fr.connect(pair.servers[0].address, "fr_wrong") as client, pytest.raises(fr.TokenInvalid) as caught:
        client.myself()
    assert caught.value.replica == ""
    with fr.connect(pair.servers[0].address, pair.token) as client, pytest.raises(fr.TrainingNotFound) as found:
        client.get_training(UNKNOWN)
    assert found.value.replica == "first"


def test_a_server_that_is_alone_and_was_given_no_name_has_none_in_errors(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        ended = forked.run(
            *("--server", server.address, "training", "show", UNKNOWN),
            environment={"FEDROUND_TOKEN": server.admin_token},
        )
    assert "TRAINING_NOT_FOUND" in ended.stderr
    assert "(replica" not in ended.stderr
