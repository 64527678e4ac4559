"""The engine's worker: a process of its own that may be killed, is replaced, and leaves nothing behind."""

import asyncio
import gc
import hashlib
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from aggregations import FED_AVG
from fedround_server.blobs import BlobDamaged
from fedround_server.counters import JobQueue
from fedround_server.domain.errors import WorkerKilled
from fedround_server.domain.model import BlobRef
from fedround_server.engine.executor import WorkerEngine, WorkerLost
from fedround_server.engine.jobs import AggregationFailed, AggregationJob, CheckJob
from fedround_server.engine.process import Worker
from forked import forking_workers
from unit.killed_jobs import aggregate_and_die_once, be_killed, die_once
from unit.paths import Paths, at
from unit.safetensors_files import write

# Makes a worker, prints its id, and waits to be killed.
SERVER = """
import asyncio, multiprocessing, sys, time
from pathlib import Path
from fedround_server.engine.executor import WorkerEngine
from fedround_server.engine.jobs import CheckJob
from unit.paths import Paths, at
if __name__ == "__main__":
    file = Path(sys.argv[1])
    with WorkerEngine(Paths(file.parent)) as engine:
        asyncio.run(engine.check(CheckJob(at(file))))
        assert "torch" not in sys.modules
        print(multiprocessing.active_children()[0].pid, flush=True)
        time.sleep(60)
"""


# Loading torch takes a process a second, so the tests share one; a process that dies is replaced.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine makes its files."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module", autouse=True)
def forked_workers() -> Iterator[None]:
    """Loading torch takes a process a second, so all are forked but those of `SERVER`."""
    with forking_workers():
        yield


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[WorkerEngine]:
    with WorkerEngine(Paths(folder)) as engine:
        yield engine


@pytest.fixture(autouse=True)
def emptied(folder: Path) -> Iterator[None]:
    yield
    for path in folder.iterdir():
        path.unlink()


@contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    worker.start()
    try:
        yield worker
    finally:
        worker.end()


def job(folder: Path, elements: int = 3) -> AggregationJob:
    path = folder / "model"
    path.write_bytes(write({"w": np.ones(elements, np.float32)}))
    return AggregationJob(at(path), (at(path),) * 2, (1, 2), FED_AVG)


async def test_jobs_come_back_with_their_results(engine: WorkerEngine, folder: Path, tmp_path: Path) -> None:
    work = job(tmp_path)
    assert (await engine.check(CheckJob(work.model))).not_finite is None
    made = await engine.aggregate(work)
    new = Paths(folder).local_path(made.file)
    assert new.stat().st_size == made.blob.size_bytes
    assert safetensors.numpy.load_file(new)["w"].tolist() == [1, 1, 1]
    assert [path.name for path in folder.iterdir()] == [new.name]


async def test_a_round_may_have_more_updates_than_the_soft_limit_of_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    work = job(tmp_path)
    many = AggregationJob(work.model, (work.model,) * 300, (1,) * 300, FED_AVG)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with WorkerEngine(Paths(tmp_path)) as engine:
            made = await engine.aggregate(many)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert safetensors.numpy.load_file(Paths(tmp_path).local_path(made.file))["w"].tolist() == [1, 1, 1]


async def test_a_failure_comes_back_as_itself(engine: WorkerEngine, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "spoilt"
    path.write_bytes(write({"w": np.array([np.inf])}))
    spoilt = at(path)
    with pytest.raises(AggregationFailed, match="'w'"):
        await engine.aggregate(AggregationJob(spoilt, (spoilt, spoilt), (3, 3), FED_AVG))
    with pytest.raises(BlobDamaged, match="gone is missing"):
        await engine.aggregate(AggregationJob(at(tmp_path / "gone"), (spoilt,), (1,), FED_AVG))
    # A part of the file would lie there until the next start.
    assert list(folder.iterdir()) == []
    assert (await engine.check(CheckJob(spoilt))).not_finite == "w"


async def test_a_killed_worker_is_replaced_and_its_job_done_again(engine: WorkerEngine, tmp_path: Path) -> None:
    first = await engine._worker.run(os.getpid)
    second = await engine._worker.run(die_once, tmp_path / "died")
    assert second == await engine._worker.run(os.getpid) != first


async def test_what_a_killed_worker_left_is_not_in_the_way(engine: WorkerEngine, tmp_path: Path) -> None:
    files = Paths(tmp_path)
    made = await engine._worker.run(aggregate_and_die_once, tmp_path / "died", files, job(tmp_path))
    assert len(list(tmp_path.glob("staged *"))) == 2
    target = files.local_path(made.file)
    assert BlobRef(hashlib.sha256(target.read_bytes()).hexdigest(), target.stat().st_size) == made.blob
    assert safetensors.numpy.load_file(target)["w"].tolist() == [1, 1, 1]


async def test_jobs_that_wait_survive_their_worker_too(engine: WorkerEngine, tmp_path: Path) -> None:
    work, pid = job(tmp_path), await engine._worker.run(os.getpid)
    waiting = [asyncio.create_task(engine.aggregate(work)) for _ in range(20)]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert len({made.blob for made in await asyncio.gather(*waiting)}) == 1


async def test_a_job_that_kills_every_worker_is_given_up() -> None:
    queue = JobQueue()
    with running(Worker(gc.enable, queue)) as worker:
        with pytest.raises(WorkerLost, match="3 times"):
            await worker.run(os._exit, 1)
        assert await worker.run(abs, -1) == 1
        assert worker.process_id is not None
    assert (queue.crashes, queue.in_progress) == (3, 0)
    assert {kind: found.count for kind, found in queue.jobs.items()} == {"_exit": 1, "abs": 1}


async def test_nothing_is_held_against_a_job_whose_workers_are_killed_from_outside() -> None:
    with running(Worker(gc.enable)) as worker:
        *lost, found = await asyncio.gather(
            worker.run(be_killed), worker.run(be_killed), worker.run(abs, -1), return_exceptions=True
        )
    assert [type(error) for error in lost] == [WorkerKilled] * 2
    assert found == 1


async def test_a_worker_that_is_killed_at_its_start_again_and_again_is_not_there_now() -> None:
    with running(Worker(be_killed)) as worker, pytest.raises(WorkerKilled, match="out of memory"):
        await worker.run(abs, 1)


async def test_jobs_that_wait_survive_any_number_of_deaths_by_others() -> None:
    with running(Worker(gc.enable)) as worker:
        killers = [worker.run(os._exit, 1) for _ in range(2)]
        waiting = [worker.run(abs, number) for number in range(3)]
        *lost, first, second, third = await asyncio.gather(*killers, *waiting, return_exceptions=True)
    assert [str(error) for error in lost] == ["the worker died 3 times with _exit"] * 2
    assert (first, second, third) == (0, 1, 2)


async def test_a_worker_that_cannot_start_is_given_up() -> None:
    with running(Worker(partial(os._exit, 1))) as worker:
        lost = await asyncio.gather(*(worker.run(abs, 1) for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in lost] == ["the worker died 3 times with abs"] * 2


async def test_torch_stays_in_the_worker_and_the_worker_goes_with_its_server(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen(
        [sys.executable, str(script), job(tmp_path).model.sha256],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert server.stdout is not None
    child = os.pidfd_open(int(server.stdout.readline()))
    server.kill()
    server.wait()
    server.stdout.close()
    ended, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ended


async def test_blocks_are_not_shared_among_threads(engine: WorkerEngine) -> None:
    assert await engine._worker.run(torch.get_num_threads) == 1


async def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    with WorkerEngine(Paths(tmp_path)) as engine:
        pass
    with pytest.raises(WorkerLost, match="closed"):
        await engine.check(CheckJob(at(tmp_path)))


async def test_closing_ends_the_worker_at_once(tmp_path: Path) -> None:
    before = multiprocessing.active_children()
    with WorkerEngine(Paths(tmp_path)) as engine:
        work = job(tmp_path, 20_000_000)
        await engine.check(CheckJob(work.model))
        in_progress = asyncio.create_task(engine.aggregate(work))
        await asyncio.sleep(0.01)
        assert len(multiprocessing.active_children()) == len(before) + 1
    assert set(multiprocessing.active_children()) == set(before)
    with pytest.raises(WorkerLost):
        await in_progress
