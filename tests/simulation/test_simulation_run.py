"""Whole simulations, each with a server and workers of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedround_client as fr
from calls import until
from fedround_client.command import app
from simulation import simulated

MODULE = "simulation.simulated"


def start_command(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "fedround_client", "simulate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


def processes_of(folder: Path) -> list[str]:
    """Returns the process ids of all that share a folder for temporary files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def simulate(function: Any, **options: Any) -> fr.Simulation:
    return fr.simulate(function, simulated.make_model(), **({"clients": 4, "workers": 1, "rounds": 2} | options))


@pytest.mark.examples
def test_the_result_depends_on_the_seed_alone(tmp_path: Path) -> None:
    words = ("--clients=20", "--workers=2", "--rounds=2", "--metric=distance", "--output=out")
    with start_command(tmp_path, f"{MODULE}:make_client", *words) as command:
        text, log = command.communicate()
    assert command.returncode == 0, log
    assert re.findall(r"^round (\d) of 4(, evaluation)?: 20 clients", log, re.MULTILINE) == [
        ("1", ""),
        ("2", ", evaluation"),
        ("3", ""),
        ("4", ", evaluation"),
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert text.splitlines()[0].split() == ["VERSION", "distance", "loss"]
    assert f"Model {report['model_sha256'][:12]}, version 2." in text
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "report.json",
        "metrics.png",
        "model.safetensors",
        "logs",
    }
    assert list(tmp_path.glob("fedround-simulation-*")) == []
    until(lambda: not processes_of(tmp_path))

    # One worker has other neighbours for each client, and another order.
    again = simulate(simulated.make_client, clients=20, metric_names=["distance"])
    assert again.model_sha256 == report["model_sha256"]
    assert [record.metrics for record in again.rounds] == [record["metrics"] for record in report["rounds"]]
    weights = [1 + index % 5 for index in range(20)]
    assert again.rounds[0].metrics["loss"] == pytest.approx(np.average(range(20), weights=weights))
    assert fr.from_safetensors((tmp_path / "out" / "model.safetensors").read_bytes())["w"].tolist() == (
        again.model["w"].tolist()
    )


def test_a_client_keeps_its_state_and_one_that_raises_is_left_out(tmp_path: Path) -> None:
    seen: list[int] = []
    result = simulate(
        f"{MODULE}:make_client_that_counts",
        data_dir=tmp_path / "data",
        listener=lambda history: seen.append(len(history.rounds)),
    )
    assert result.model["w"].tolist() == [2.0] * 8
    assert seen[-1] == 2
    assert (tmp_path / "data" / "fedround.db").exists()
    with pytest.raises(ValueError, match="data is not empty"):
        simulate(simulated.make_client, data_dir=tmp_path / "data")

    result = simulate(simulated.make_client_that_raises_at_2, output=tmp_path / "out")
    assert [(failure.client, failure.round) for failure in result.failures] == [(2, 0), (2, 1)]
    assert {(failure.reason, failure.message) for failure in result.failures} == {("TRAIN_FAILED", "ValueError: boom")}
    assert [(record.arrived, record.failed) for record in result.rounds] == [(3, 1), (3, 1)]
    log = (tmp_path / "out" / "logs" / "worker-0.log").read_text()
    assert log.count("Traceback") == 1
    assert "Client 2 failed in round 2: ValueError: boom" in log


def test_the_clients_of_a_round_are_drawn_with_the_seed() -> None:
    def run(**options: Any) -> fr.Simulation:
        return simulate(simulated.make_client, clients=10, fraction=0.3, **options)

    result = run()
    assert [record.arrived for record in result.rounds] == [3, 3]
    assert run(workers=2).model_sha256 == result.model_sha256
    assert run(seed=1).model_sha256 != result.model_sha256


def test_a_worker_downloads_each_version_once() -> None:
    result = simulate(simulated.make_client_that_counts_downloads, clients=20, workers=1)
    assert [record.metrics["downloads"] for record in result.rounds] == [1, 2]


@pytest.mark.examples
def test_the_server_of_a_new_folder_keeps_its_promise(tmp_path: Path) -> None:
    for options in ({}, {"data_dir": tmp_path / "data"}):
        logs = tmp_path / str(len(options))
        simulate(simulated.make_client, rounds=1, output=logs, **options)
        assert ("no_sync" in (logs / "logs" / "server.log").read_text()) is (not options)


def test_private_tensors_stay_with_their_client(tmp_path: Path) -> None:
    options: dict[str, Any] = {"private": ["b"], "rounds": 3, "on_failure": "FAIL", "data_dir": tmp_path / "data"}
    result = simulate(simulated.make_client_with_a_tensor_of_its_own, **options)
    assert result.training.model_version == 3
    assert {name: tensor.max() for name, tensor in result.model.items()} == {"w": 3, "b": 0}
    assert len(list((tmp_path / "data" / "private").iterdir())) == 4


def test_control_variates_stay_with_their_client() -> None:
    result = simulate(simulated.make_client_with_control_variates, rounds=4, aggregation=fr.Scaffold())
    model, server, own = 0.0, 0.0, [0.0] * 4
    for _ in range(4):
        local, changes = [], []
        for index in range(4):
            w = model
            for _ in range(3):
                w -= 0.1 * ((index + 1) * (w - index) + server - own[index])
            local.append(w)
            changes.append((model - w) / 0.3 - server)
            own[index] += changes[-1]
        model, server = sum(local) / 4, server + sum(changes) / 4
    assert result.model["w"] == pytest.approx([model] * 8, rel=1e-5)


def test_a_training_that_fails_names_the_clients() -> None:
    with pytest.raises(fr.TrainingFailed, match=r"client-0003 \(TRAIN_FAILED: ValueError: boom 3\)") as failed:
        simulate(simulated.make_client_that_raises)
    assert failed.value.reason == "PARTICIPANTS_FAILED"


def test_a_client_that_cannot_be_made_ends_the_simulation() -> None:
    with pytest.raises(fr.SimulationFailed, match=r"make_client\(3\) raised KeyError") as failed:
        simulate(simulated.make_client_that_fails_at_3)
    assert failed.value.__cause__ is None
    assert str(failed.value).count("Traceback") == 1


@pytest.mark.examples
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    words = ("--clients=4", "--workers=2", "--output=out")
    with start_command(tmp_path, f"{MODULE}:make_client_that_sleeps", *words) as command:
        logs = [tmp_path / "out" / "logs" / f"worker-{number}.log" for number in range(2)]
        until(lambda: all(log.exists() and "asleep" in log.read_text() for log in logs))
        assert len(processes_of(tmp_path)) > 4
        command.send_signal(signal.SIGINT)
        text, log = command.communicate()
    assert (command.returncode, text) == (130, "")
    assert log == "Stopped by SIGINT. Nothing is left running.\n"
    assert list(tmp_path.glob("fedround-simulation-*")) == []
    until(lambda: not processes_of(tmp_path))


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: the engine ray is not tested")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_workers_may_be_tasks_of_ray() -> None:
    options = {"clients": 6, "workers": 2, "metric_names": ["distance"]}
    on_ray = simulate(f"{MODULE}:make_client", engine="ray", **options)
    assert on_ray.model_sha256 == simulate(simulated.make_client, **options).model_sha256
    with pytest.raises(fr.SimulationFailed, match=r"make_client\(3\) raised KeyError"):
        simulate(simulated.make_client_that_fails_at_3, engine="ray")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clients": 0}, "clients is 0: a simulation has 1 to 10,000"),
        ({"clients": 10_001}, "clients is 10001"),
        ({"rounds": 0}, "rounds is 0"),
        ({"workers": 5}, "workers is 5: there must be at least 1, and at most one for each of 4 clients"),
        ({"workers": 0}, "workers is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"engine": "dask"}, "engine must be"),
    ],
)
def test_impossible_numbers_are_rejected(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        simulate(simulated.make_client, **options)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("nowhere:make_client",), 1, "error: SIMULATION_FAILED: There is no module nowhere"),
        ((f"{MODULE}:make_client", "--model", f"{MODULE}:nothing"), 1, "has no nothing. --model names the initial"),
        ((f"{MODULE}:make_client", "--clients=0"), 2, "'--clients'"),
        ((f"{MODULE}:make_client", "--clients=2", "--workers=3"), 2, "workers is 3"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    ended = CliRunner().invoke(app, ["simulate", *words])
    assert ended.exit_code == code
    assert text in ended.output
    assert list(tmp_path.iterdir()) == []
