import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import fedround_client as fr
from fedround_client.simulation import engines
from fedround_client.simulation.engines import WORKER_MARK, ProcessEngine, failure, open_engine
from fedround_client.simulation.functions import SimulationFailed
from simulation import simulated


def write_environment(path: Path) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    path.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ[WORKER_MARK]} {signal.SIGINT in blocked}")


def wait_for_ever(path: Path) -> None:
    path.touch()
    signal.pause()


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_has_one_thread_for_numbers_and_ignores_ctrl_c(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    engine = ProcessEngine(1)
    try:
        engine.submit(write_environment, tmp_path / "found").result()
    finally:
        engine.close()
    assert (tmp_path / "found").read_text() == "1 1 True"
    assert "OMP_NUM_THREADS" not in os.environ
    assert WORKER_MARK not in os.environ


def test_close_ends_workers_that_are_busy(tmp_path) -> None:
    engine = ProcessEngine(1)
    call = engine.submit(wait_for_ever, tmp_path / "begun")
    while not (tmp_path / "begun").exists():
        assert not call.done()
    engine.close()
    assert isinstance(call.exception(), BrokenProcessPool)


def test_a_worker_that_is_killed_is_a_failure() -> None:
    engine = ProcessEngine(1)
    try:
        error = engine.submit(kill_oneself).exception()
    finally:
        engine.close()
    assert error is not None
    assert "A worker process has ended unexpectedly" in str(failure(error))


def test_the_failure_of_a_worker_is_passed_on() -> None:
    known = SimulationFailed("why", "Traceback")
    assert failure(known) is known
    wrapped = RuntimeError()
    wrapped.cause = known  # type: ignore[attr-defined]  # as Ray does
    assert failure(wrapped) is known
    assert str(failure(OSError("gone"))) == "A worker has failed: OSError: gone"


def test_ray_that_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(SimulationFailed, match=r'needs Ray, not installed here: pip install "fedround\[ray\]"'):
        open_engine("ray", 1)
    with pytest.raises(ValueError, match="'dask'"):
        open_engine("dask", 1)  # type: ignore[arg-type]


def test_a_simulation_in_a_worker_is_rejected(monkeypatch) -> None:
    monkeypatch.setenv(WORKER_MARK, "1")
    with pytest.raises(SimulationFailed, match="below `if __name__ == "):
        fr.simulate(simulated.make_client, simulated.make_model(), clients=1, rounds=1)
