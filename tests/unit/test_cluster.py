"""The server's side of a cluster: jobs wait while it is away, and are bounded in what they may do to the driver."""

import asyncio
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from aggregations import FED_AVG
from fedround_server.domain.model import BlobRef
from fedround_server.engine.cluster import cluster as module
from fedround_server.engine.cluster import driver
from fedround_server.engine.cluster.cluster import Cluster
from fedround_server.engine.cluster.driver import ClusterAway, NotConnected
from fedround_server.engine.cluster.engine import LARGE_BYTES, RayEngine
from fedround_server.engine.executor import WorkerEngine
from fedround_server.engine.jobs import AggregationJob
from fedround_server.engine.process import ATTEMPTS, WorkerLost
from ports import hold_a_port
from unit.paths import Paths


class Driver:
    """Stands for the driver: connects with whatever listens, and has a script of what comes of each job."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.connections = self.replaced = 0

    async def run(self, function: Callable[..., object], *args: Any) -> object:
        if function is driver.connect:
            self.connections += 1
            return driver.endpoint(args[0])
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def replace(self) -> None:
        self.replaced += 1


@pytest.fixture
def port() -> int:
    with hold_a_port() as port:
        number: int = port.getsockname()[1]
    return number


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROBE_SECONDS", "RETRY_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(module, name, 0.01)


def cluster(address: str, folder: Path, *outcomes: object) -> tuple[Cluster, Driver]:
    made, scripted = Cluster(address, folder, 1), Driver(*outcomes)
    made._driver = scripted  # type: ignore[assignment]
    return made, scripted


async def listen(port: int) -> asyncio.Server:
    return await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)


async def test_jobs_wait_while_the_cluster_is_away_and_are_repeated(
    port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.__name__)
    made, scripted = cluster(f"127.0.0.1:{port}", tmp_path, ClusterAway("lost"), 5, 6)
    jobs = [asyncio.create_task(made.run(driver.run_replay)) for _ in range(2)]
    while not caplog.records:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert (len(caplog.records), scripted.connections, scripted.replaced) == (1, 0, 0)
    async with await listen(port):
        assert await asyncio.gather(*jobs) == [5, 6]
    away = f"Ray at 127.0.0.1:{port} is away, and large aggregations wait for it: "
    said = [record.message for record in caplog.records]
    assert said[0].startswith(away)
    assert said[1:] == [f"Ray at 127.0.0.1:{port} is back", f"{away}lost", f"Ray at 127.0.0.1:{port} is back"]
    # A driver that has lost its cluster is of no use.
    assert (scripted.connections, scripted.replaced) == (2, 1)


async def test_a_cluster_that_is_lost_while_nothing_runs_is_noticed(
    port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.__name__)
    made, _ = cluster(f"ray://127.0.0.1:{port}", tmp_path)
    made._head = f"127.0.0.1:{port}"
    watching = asyncio.create_task(made.watch())
    while not caplog.records:
        await asyncio.sleep(0.01)
    async with await listen(port):
        while len(caplog.records) < 2:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert [record.levelname for record in caplog.records][:2] == ["WARNING", "INFO"]


async def test_a_job_that_ends_the_driver_is_given_up(port: int, tmp_path: Path) -> None:
    ended = [NotConnected("ended")] * ATTEMPTS
    made, scripted = cluster(f"127.0.0.1:{port}", tmp_path, *ended, 5)
    async with await listen(port):
        with pytest.raises(WorkerLost, match="the driver died 3 times with run_aggregation"):
            await made.run(driver.run_aggregation)
        assert await made.run(driver.run_aggregation) == 5
    assert scripted.connections == ATTEMPTS + 1


@pytest.mark.parametrize(("size", "is_sent"), [(LARGE_BYTES, True), (LARGE_BYTES - 1, False)])
async def test_large_aggregations_are_sent_and_come_back_if_workers_die_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, is_sent: bool
) -> None:
    asked = []

    class Deadly:
        async def run(self, *_: object) -> object:
            asked.append("there")
            raise WorkerLost("dead")

    async def aggregate(_: WorkerEngine, job: AggregationJob) -> AggregationJob:
        asked.append("here")
        return job

    monkeypatch.setattr(WorkerEngine, "aggregate", aggregate)
    engine = RayEngine(Deadly(), Paths(tmp_path))  # type: ignore[arg-type]
    job = AggregationJob(BlobRef("m", 1), (BlobRef("u", size - 1), BlobRef("v", 1)), (1, 1), FED_AVG)
    assert await engine.aggregate(job) is job
    assert asked == (["there", "here"] if is_sent else ["here"])


def test_a_server_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "ray" else util.find_spec(name))
    with pytest.raises(RuntimeError, match=r'run pip install "fedround\[ray\]"'):
        Cluster("", tmp_path, 1).__enter__()


@pytest.mark.parametrize(
    ("address", "found"),
    [("", ""), ("auto", ""), ("head:6379", "head:6379"), ("ray://head:10001", "head:10001"), ("[::1]:1", "[::1]:1")],
)
def test_the_head_of_an_address(address: str, found: str) -> None:
    assert driver.endpoint(address) == found
