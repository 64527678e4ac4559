"""An object store that is away for a minute, in each phase: nothing is lost, and all goes on when it is back."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from e2e.federation import Federation, federation
from e2e.test_replica_faults import LARGE
from seaweed import Seaweed, weed
from servers import MODULE, Server

SECONDS = 60.0
PHASES = ("upload", "round", "aggregation", "download", "start")


class Site:
    """A server on the store, with a training of two participants and one round."""

    def __init__(self, server: Server, group: Federation) -> None:
        self.server = server
        self.group = group
        training = group.actor.create_training(
            {"w": np.zeros_like(LARGE["w"])}, name="t", target_num_updates=1, client_ids=group.ids
        )
        self.training_id, self.model_id = training.training_id, training.model_id

    def begin(self) -> None:
        self.group.actor.start_training(self.training_id)

    def submit(self, number: int, then: Callable[[], object] = lambda: None) -> None:
        with self.group.connect(number) as client:
            client.submit_update(self.training_id, 0, {"w": (number + 1) * LARGE["w"]}, 1)
            then()

    def begin_and_submit(self) -> None:
        self.begin()
        for number in range(2):
            self.submit(number)

    def check(self) -> None:
        """Downloads the version, which is the mean of both updates."""
        self.group.actor.wait(self.training_id, 100)
        assert np.array_equal(self.group.actor.download_model(self.model_id)["w"], 1.5 * LARGE["w"])

    def start(self) -> None:
        """Starts the server again and again until it serves, as a service manager does; each time it says why not."""
        size = len(self.server.log)
        while True:
            try:
                self.server.start()
            except AssertionError:
                lines = self.server.log[size:].splitlines()
                size = len(self.server.log)
                assert [line for line in lines if line.startswith("error: objects: s3://tests/")] == lines[-1:], lines
                time.sleep(1)
            else:
                return


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Seaweed]:
    (tmp_path / "weed").mkdir()
    with closing(Seaweed(tmp_path / "weed", weed())) as found:
        yield found


@pytest.fixture
def sites(store: Seaweed, tmp_path: Path) -> Iterator[dict[str, Site]]:
    with ExitStack() as stack:
        found: dict[str, Site] = {}
        for phase in PHASES:
            options = ("--objects", f"s3://tests/{phase}")
            server = Server(tmp_path / phase, options=options, program=MODULE, variables=store.environment())
            stack.enter_context(server)
            found[phase] = Site(server, stack.enter_context(federation(server, 2)))
        yield found


@pytest.mark.scale
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_nothing_is_lost_while_the_store_is_away(store: Seaweed, sites: dict[str, Site], how: str) -> None:
    for phase in ("upload", "aggregation", "start"):
        sites[phase].begin()
        sites[phase].submit(0)
    sites["start"].submit(1)
    sites["start"].check()
    sites["start"].server.kill()
    sites["download"].begin_and_submit()
    sites["download"].check()
    for copy in (sites["download"].server.data_dir / "cache").glob("objects/*/*"):
        copy.unlink()
    # The update is acknowledged, and the version has yet to be computed.
    sites["aggregation"].submit(1, lambda: store.send(signal.SIGSTOP) if how == "stopped" else store.kill())
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(sites["upload"].submit, 1),
            pool.submit(sites["round"].begin_and_submit),
            pool.submit(sites["download"].check),
            pool.submit(sites["start"].start),
        ]
        time.sleep(SECONDS)
        assert not any(one.done() for one in waiting)
        assert sites["aggregation"].group.actor.get_training(sites["aggregation"].training_id).model_version == 0
        if how == "stopped":
            store.send(signal.SIGCONT)
        else:
            store.start()
        for one in waiting:
            one.result(200)
    for site in sites.values():
        site.check()
        assert "Traceback" not in site.server.log
