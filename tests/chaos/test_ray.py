"""Large aggregations on Ray: the same bits, while its workers and its head are killed. Ray's start takes seconds."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import save_file

from calls import until
from chaos.ray_files import DeadlyFiles, HeldFiles
from e2e.federation import Federation, federation, plus_one
from fedround.v1.round_pb2 import ROUND_STATE_AGGREGATING
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, Training
from fedround_server.aggregators.centered_clipping import CenteredClipping
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.krum import Krum
from fedround_server.aggregators.median import Median
from fedround_server.aggregators.server_optimizer import Adam
from fedround_server.domain.aggregation import Aggregation
from fedround_server.engine.cluster.cluster import Cluster
from fedround_server.engine.cluster.engine import RayEngine, is_large
from fedround_server.engine.executor import WorkerEngine
from fedround_server.engine.jobs import AggregationJob
from ports import hold_a_port
from seaweed import seaweed
from servers import MODULE, Server, descendants
from unit.paths import Paths, at

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

one_loop = pytest.mark.asyncio(loop_scope="module")
ELEMENTS = 6_000_000
"""Of these, three updates are divided into two ranges."""
AGGREGATIONS = {
    "mean": Aggregation(FedAvg()),
    "products": Aggregation(Krum(0)),
    "kept aggregate": Aggregation(CenteredClipping()),
    "columns and an optimizer": Aggregation(Median(), server_optimizer=Adam()),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def job(folder: Path) -> AggregationJob:
    rng, paths = np.random.default_rng(7), []
    for number in range(4):
        paths.append(folder / f"{number}.safetensors")
        save_file({"w": rng.standard_normal(ELEMENTS, np.float32)}, paths[-1])
    model, *updates = map(at, paths)
    made = AggregationJob(model, tuple(updates), (1, 2, 3), Aggregation(FedAvg()), user_ids=("a", "b", "c"))
    assert is_large(made)
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    """One for all tests that need no server."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers import the tests' own files.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=":")
        with Cluster("", folder, 2) as opened:
            yield opened


@pytest.fixture(scope="module")
def engine(cluster: Cluster, folder: Path) -> Iterator[RayEngine]:
    with RayEngine(cluster, Paths(folder)) as opened:
        yield opened


async def digest(engine: WorkerEngine, job: AggregationJob, *, here: bool = False) -> tuple[str, ...]:
    """The digests of a result and of its state; `here` computes without Ray."""
    made = await (WorkerEngine.aggregate(engine, job) if here else engine.aggregate(job))
    for staged in (made, *made.slots.values()):
        engine._files.local_path(staged.file).unlink()
    return made.blob.sha256, *(staged.blob.sha256 for _, staged in sorted(made.slots.items()))


def named(pid: int, name: str) -> list[int]:
    """The descendants of a process whose command begins with a name, or has it as a path's end."""
    found = []
    for child in descendants(pid):
        with suppress(FileNotFoundError):
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode()
            if command.startswith(name) or command.endswith(f"/{name}"):
                found.append(child)
    return found


@pytest.mark.chaos
@one_loop
@pytest.mark.parametrize("aggregation", AGGREGATIONS.values(), ids=AGGREGATIONS.keys())
async def test_ray_makes_the_same_bits(engine: RayEngine, job: AggregationJob, aggregation: Aggregation) -> None:
    asked = AggregationJob(job.model, job.updates, job.weights, aggregation, user_ids=job.user_ids)
    there = await digest(engine, asked)
    assert there == await digest(engine, asked, here=True)
    again = await engine.replay(asked, asked.model)
    assert again.sha256 == there[0]


@pytest.mark.chaos
@one_loop
async def test_a_range_whose_worker_is_killed_is_computed_again(
    cluster: Cluster, engine: RayEngine, job: AggregationJob, folder: Path
) -> None:
    (folder / "hold").touch()
    running = asyncio.create_task(digest(RayEngine(cluster, HeldFiles(folder)), job))
    killed: list[int] = []
    while not killed:
        await asyncio.sleep(0.05)
        assert cluster.process_id is not None
        killed = named(cluster.process_id, "ray::run_range")
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    (folder / "hold").unlink()
    assert await running == await digest(engine, job, here=True)


@pytest.mark.chaos
@one_loop
async def test_a_job_that_rays_workers_die_of_is_computed_here(
    cluster: Cluster, engine: RayEngine, job: AggregationJob, folder: Path
) -> None:
    with RayEngine(cluster, DeadlyFiles(folder)) as deadly:
        assert await digest(deadly, job) == await digest(engine, job, here=True)


@pytest.mark.scale
@one_loop
@pytest.mark.parametrize("process", ["gcs_server", "raylet"])
async def test_a_ray_of_its_own_that_is_killed_is_started_again(
    cluster: Cluster,
    engine: RayEngine,
    job: AggregationJob,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    process: str,
) -> None:
    caplog.set_level("INFO", "fedround_server.engine.cluster.cluster")
    (folder / "hold").touch()
    running = asyncio.create_task(digest(RayEngine(cluster, HeldFiles(folder)), job))
    assert cluster.process_id is not None
    while not named(cluster.process_id, "ray::run_range"):
        await asyncio.sleep(0.05)
    for pid in named(cluster.process_id, process):
        os.kill(pid, signal.SIGKILL)
    while "is away" not in caplog.text:
        await asyncio.sleep(0.05)
    (folder / "hold").unlink()
    assert await running == await digest(engine, job, here=True)
    assert [record.message.split(":")[0] for record in caplog.records if "Ray" in record.message] == [
        "Ray is away, and large aggregations wait for it",
        "Ray is back",
    ]


class Head:
    """A cluster of one node on this machine, which is killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with hold_a_port() as port, hold_a_port() as other:
            self.address = f"127.0.0.1:{port.getsockname()[1]}"
            self._client_port = other.getsockname()[1]

    def start(self) -> None:
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--port", self.address.split(":")[1]),
            *("--ray-client-server-port", str(self._client_port), "--min-worker-port", "0", "--max-worker-port", "0"),
            *("--include-dashboard", "false", "--disable-usage-stats", "--num-cpus", "2"),
            *("--object-store-memory", str(200 << 20), "--temp-dir", str(self._folder)),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def pids(self) -> list[int]:
        """Its processes: all have its folder in their command."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{self._folder}/".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != os.getpid()]

    def kill(self) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.pids())


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    # Loopback alone, for all processes of the cluster and for the server's driver.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = Path(f"/tmp/fr-{os.getpid()}")  # short, for the paths of sockets
    made = Head(folder)
    try:
        yield made
    finally:
        made.kill()
        subprocess.run(["rm", "-rf", str(folder)], check=False)


MODEL = {"w": np.zeros(ELEMENTS, np.float32)}


def train(group: Federation, rounds: int) -> Training:
    """Runs a training with large updates; on a busy machine, Ray and its workers take a minute to start."""
    training = group.actor.create_training(MODEL, name="t", client_ids=group.ids, target_num_updates=rounds)
    ends = [group.take_part(number, plus_one) for number in range(3)]
    group.actor.start_training(training.training_id)
    after = group.actor.wait(training.training_id, 500)
    for end in ends:
        end.result(60)
    assert (after.state, after.model_version) == (TRAINING_STATE_COMPLETED, rounds)
    return after


def has_ray(pid: int) -> bool:
    return bool(named(pid, "gcs_server"))


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and that its parent does not ask for, has no command."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


@pytest.mark.scale
def test_trainings_with_a_ray_of_the_servers_own_which_ends_with_it(tmp_path: Path) -> None:
    options = ("--engine", "ray", "--aggregation-threads", "2")
    with Server(tmp_path / "data", options=options, program=MODULE) as server:
        with federation(server, 3) as group:
            training = train(group, 2)
            *_, last = group.actor.download_model(training.model_id).items()
            assert float(last[1].max()) == float(last[1].min()) == 2
        assert "Ray is ready" in server.log
        started = descendants(server.pid)
        assert has_ray(server.pid)
        server.stop()
        until(lambda: not any(map(is_alive, started)))
        server.start()
        until(lambda: has_ray(server.pid))
        started = descendants(server.pid)
        server.kill()
        until(lambda: not any(map(is_alive, started)))
        server.start()


@pytest.mark.scale
def test_a_training_with_an_object_store(tmp_path: Path, head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweed().environment().items():
        monkeypatch.setenv(name, value)
    head.start()
    options = ("--engine", "ray", "--ray-address", head.address, "--objects", f"s3://tests/{uuid4()}")
    with Server(tmp_path / "data", options=options, program=MODULE) as server, federation(server, 3) as group:
        training = train(group, 2)
        assert group.actor.download_model(training.model_id)["w"].tolist() == [2] * ELEMENTS
        assert f"Ray at {head.address} is ready" in server.log
        assert "Traceback" not in server.log
    # Nothing is stored beside the bucket but copies.
    assert not [*(tmp_path / "data").glob("objects/*/*")]
    assert [*(tmp_path / "data" / "cache").glob("objects/*/*")]


@pytest.mark.scale
def test_a_cluster_that_is_away_delays_large_rounds_and_loses_nothing(tmp_path: Path, head: Head) -> None:
    options = ("--engine", "ray", "--ray-address", head.address)
    with Server(tmp_path / "data", options=options, program=MODULE) as server, federation(server, 3) as group:
        small = group.run(lambda number: (plus_one,), {"w": np.zeros(2, np.float32)}, target_num_updates=1)
        assert small.state == TRAINING_STATE_COMPLETED

        large = group.actor.create_training(MODEL, name="t", client_ids=group.ids, target_num_updates=2)
        ends = [group.take_part(number, plus_one) for number in range(3)]
        group.actor.start_training(large.training_id)

        def is_waiting() -> bool:
            return group.actor.get_round(large.training_id, 0).state == ROUND_STATE_AGGREGATING

        until(is_waiting)
        until(lambda: server.log.count("is away") == 1)
        # A restart of the server resumes the round.
        server.kill()
        server.start()
        until(lambda: server.log.count("is away") == 2)
        time.sleep(3)
        assert is_waiting()
        starting = threading.Thread(target=head.start)
        starting.start()
        training = group.actor.wait(large.training_id, 300)
        starting.join()
        for end in ends:
            end.result(60)
        assert (training.state, training.model_version) == (TRAINING_STATE_COMPLETED, 2)
        assert server.log.count("is away") == 2
        assert server.log.count("is back") == 1

        # It is lost while nothing runs, and comes back at the same port.
        head.kill()
        until(lambda: server.log.count("is away") == 3)
        head.start()
        until(lambda: server.log.count("is back") == 2)
        train(group, 1)
