"""Replicas whose network, database connections or object store fail while clients use them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
import numpy as np
import pytest

from calls import fails_with, kinds, model_file, read_error, until
from chaos.proxy import Fate, Proxy
from e2e.federation import Federation, federation
from e2e.test_several_servers import ME, has, is_done, recorded, succeeds, users
from operations.test_health import health
from replicas import replica, replicas
from seaweed import seaweed
from servers import MODULE, Server, descendants
from service.test_outage import away

pytestmark = pytest.mark.chaos
on_postgres = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
LARGE = {"w": np.arange(6 << 20, dtype=np.float32)}
"""A model of 24 MiB, which are three parts in an object store."""


class Cut:
    """A network that can be cut, silently or with resets."""

    def __init__(self) -> None:
        self.proxy: Proxy
        self._is_cut = threading.Event()
        self._end = "reset"

    @contextmanager
    def before(self, address: str) -> Iterator[None]:
        """Leads to a server within the block."""
        with Proxy(address, self._fate) as self.proxy:
            yield

    def cut(self, *, is_silent: bool = False) -> None:
        self._end = "hole" if is_silent else "reset"
        self._is_cut.set()
        (self.proxy.swallow if is_silent else self.proxy.cut)()

    def mend(self) -> None:
        self._is_cut.clear()
        # What was swallowed is lost.
        self.proxy.cut()

    def _fate(self, _: int) -> Fate:
        return Fate(lives=0, end=self._end) if self._is_cut.is_set() else Fate()


def behind(database: str, cut: Cut) -> str:
    """The URL of a database on a local socket, through the proxy."""
    parts = urlsplit(database)
    user = parts.username or "postgres"
    return f"postgresql://{user}@{cut.proxy.address}{parts.path}?sslmode=disable&connect_timeout=2"


def socket_of(database: str) -> str:
    [folder] = parse_qs(urlsplit(database).query)["host"]
    return f"{folder}/.s.PGSQL.5432"


@on_postgres
def test_a_replica_that_is_cut_off_from_the_database_leaves_its_work_to_the_other(
    tmp_path: Path, database: str
) -> None:
    cut = Cut()
    with (
        cut.before(socket_of(database)),
        replica(tmp_path, 0, database) as first,
        replica(tmp_path, 1, behind(database, cut), program=MODULE) as second,
    ):
        found = users([first, second])
        training = found.start(target_num_updates=2)
        events = found.client[1].subscribe(training.training_id)
        assert kinds(events.next(1)) == ["round_started"]
        workers = descendants(second.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        # It closes the round, and waits for its worker.
        found.client[1].submit(training.training_id, model_file(1))
        cut.cut(is_silent=True)
        # Its subscribers go on at the other one.
        with pytest.raises(grpc.RpcError) as raised:
            list(events)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        with fails_with("UNAVAILABLE", "STORE_UNAVAILABLE", "this server has lost its lease"):
            found.client[1].users.GetMyself(ME)
        # A load balancer leaves it, and no service manager restarts it.
        until(lambda: health(second.address) == (1, "NOT_SERVING"))
        assert health(second.address, "--live") == (0, "NOT_SERVING")
        assert health(first.address) == (0, "SERVING")
        until(lambda: is_done(found.actor[0], training.training_id))
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        cut.mend()
        until(lambda: succeeds(lambda: found.client[1].submit(training.training_id, model_file(3), 1)))
        until(lambda: health(second.address) == (0, "SERVING"))
        until(lambda: has(found.actor, training.training_id, 2))
        actions = [action for action, _ in recorded(database, training.training_id)]
        assert (actions.count("version_made"), actions.count("round_done")) == (2, 2)
        assert "Traceback" not in first.log + second.log


@on_postgres
def test_replicas_whose_connections_end_and_that_get_none_for_a_while_go_on(
    tmp_path: Path, database: str, postgres: str
) -> None:
    with replicas(tmp_path, database) as servers:
        found = users(servers)
        training = found.start(target_num_updates=2)
        events = found.client[1].subscribe(training.training_id)
        assert kinds(events.next(1)) == ["round_started"]
        with away(database, postgres):
            for client in found.client:
                with pytest.raises(grpc.RpcError) as raised:
                    client.submit(training.training_id, model_file(1))
                assert read_error(raised.value).reason == "STORE_UNAVAILABLE"
        until(lambda: succeeds(lambda: found.client[0].submit(training.training_id, model_file(1))))
        until(lambda: has(found.actor, training.training_id, 1))
        found.client[1].submit(training.training_id, model_file(3), 1)
        until(lambda: has(found.actor, training.training_id, 2))
        assert "Traceback" not in servers[0].log + servers[1].log


class Away:
    """A federation whose server has its files in an object store that can be away."""

    def __init__(self, server: Server, group: Federation, cut: Cut) -> None:
        self.server = server
        self.group = group
        self.cut = cut
        training = group.actor.create_training(
            {"w": np.zeros_like(LARGE["w"])}, name="t", target_num_updates=1, client_ids=group.ids
        )
        group.actor.start_training(training.training_id)
        self.training_id, self.model_id = training.training_id, training.model_id

    def submit(self, number: int, then: Callable[[], object] = lambda: None) -> None:
        with self.group.connect(number) as client:
            client.submit_update(self.training_id, 0, {"w": (number + 1) * LARGE["w"]}, 1)
            then()

    def end(self) -> None:
        """Ends the outage once the server has noticed it, and checks what comes out."""
        until(lambda: "the object store cannot be used" in self.server.log)
        self.cut.mend()
        self.group.actor.wait(self.training_id, 100)
        assert np.array_equal(self.group.actor.download_model(self.model_id)["w"], 1.5 * LARGE["w"])
        assert self.server.log.count("the object store answers again") == 1


@pytest.fixture
def outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    for name, value in seaweed().environment().items():
        monkeypatch.setenv(name, value)
    cut = Cut()
    with cut.before(seaweed().endpoint.removeprefix("http://")):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{cut.proxy.address}")
        options = ("--objects", f"s3://tests/{tmp_path.name}")
        with (
            Server(tmp_path / "data", options=options, program=MODULE) as server,
            federation(server, 2) as group,
        ):
            yield Away(server, group, cut)


def test_an_upload_goes_on_when_the_object_store_is_back(outage: Away) -> None:
    outage.submit(0)
    with ThreadPoolExecutor(1) as pool:
        outage.cut.cut()
        sent = pool.submit(outage.submit, 1)
        until(lambda: "the object store cannot be used" in outage.server.log)
        assert not sent.done()
        outage.end()
        sent.result(100)


def test_an_aggregation_goes_on_when_the_object_store_is_back(outage: Away) -> None:
    outage.submit(0)
    # The new model has yet to be computed.
    outage.submit(1, outage.cut.cut)
    outage.end()


def test_a_download_goes_on_when_the_object_store_is_back(outage: Away) -> None:
    for number in range(2):
        outage.submit(number)
    outage.group.actor.wait(outage.training_id, 100)
    for copy in (outage.server.data_dir / "cache").glob("objects/*/*"):
        copy.unlink()
    with ThreadPoolExecutor(1) as pool:
        outage.cut.cut()
        got = pool.submit(outage.group.actor.download_model, outage.model_id)
        outage.end()
        assert np.array_equal(got.result(100)["w"], 1.5 * LARGE["w"])
