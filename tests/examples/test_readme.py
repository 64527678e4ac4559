"""What the README says to type, in processes of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedround_client as fr
import forked
from servers import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", program=("-m", "fedround_client", "serve")) as running:
        yield running


class Terminal:
    """Runs commands in the name of a user, in a folder of the test's own."""

    def __init__(self, server: Server, token: str, folder: Path) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")} | {
            "FEDROUND_SERVER": server.address,
            "FEDROUND_TOKEN": token,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    @contextmanager
    def start(self, *words: str | Path) -> Iterator["subprocess.Popen[str]"]:
        """A process that does not outlive the block."""
        with subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *words: str) -> str:
        """What a program prints, which ends well."""
        with self.start(*words) as process:
            text, _ = process.communicate()
        assert process.returncode == 0, text
        return text

    def fedround(self, *words: str) -> Any:
        """What a command answers, as JSON."""
        return json.loads(self.run("-m", "fedround_client", *words, "--format", "json"))

    def enter(self, folder: str) -> None:
        """Changes the folder."""
        self._folder /= folder


def people(server: Server, folder: Path) -> tuple[Terminal, list[Terminal], list[str]]:
    """An actor and two clients, made with the command; and the clients' ids."""
    admin = Terminal(server, server.admin_token, folder)
    alice = admin.fedround("user", "create", "alice", "--role", "actor")
    sites = [admin.fedround("user", "create", f"site {number}", "--role", "client") for number in (1, 2)]
    actor, *clients = (Terminal(server, made["token"], folder) for made in (alice, *sites))
    return actor, clients, [site["user"]["user_id"] for site in sites]


@contextmanager
def participants(clients: list[Terminal], script: Path = EXAMPLES / "participant.py") -> Iterator[None]:
    """The example participants, or others, which come to their end in the block."""
    with ExitStack() as stack:
        running = [stack.enter_context(client.start(script)) for client in clients]
        yield
        for process in running:
            said, _ = process.communicate()
            assert process.returncode == 0, said


def test_init_writes_a_project(tmp_path: Path) -> None:
    ended = forked.run("init", tmp_path / "my-project", environment={})
    assert ended.returncode == 0, ended.stderr
    names = ["README.md", "network.py", "participant.py", "actor.py"]
    assert ended.stdout.splitlines() == [str(tmp_path / "my-project" / name) for name in names]
    for name in names[1:]:
        path = tmp_path / "my-project" / name
        compile(path.read_text(), path, "exec")


@pytest.mark.examples
def test_the_project_of_init_runs_as_it_is(server: Server, tmp_path: Path) -> None:
    actor, clients, _ = people(server, tmp_path)
    actor.run("-m", "fedround_client", "init", "my-project")
    for terminal in (actor, *clients):
        terminal.enter("my-project")
    with participants(clients, Path("participant.py")):
        said = actor.run("actor.py")
    accuracy = re.search(r"The best version is \d+, with an accuracy of (0\.\d+|1\.000)", said)
    assert accuracy is not None, said
    assert float(accuracy[1]) > 0.8
    assert re.search(r"Round \d+ of 10.*: .*waiting for site [12]", said), said
    best = torch.load(tmp_path / "my-project" / "best.pt", weights_only=True)
    assert best["1.running_mean"].shape == (32,)


def test_init_replaces_no_file(tmp_path: Path) -> None:
    mine = tmp_path / "actor.py"
    mine.write_text("mine")
    ended = forked.run("init", tmp_path, environment={})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: FILE_EXISTS: {mine} exists: use --force to overwrite it, or give another name\n"
    assert [path.name for path in tmp_path.glob("*.py")] == ["actor.py"]
    assert mine.read_text() == "mine"


def check(model: Mapping[str, np.ndarray]) -> None:
    """The participants' data say so."""
    assert np.allclose(model["weight"], [1, -2, 3], atol=0.05)
    assert np.allclose(model["bias"], 0.5, atol=0.05)


@pytest.mark.examples
def test_the_examples_learn_together(server: Server, tmp_path: Path) -> None:
    actor, clients, _ = people(server, tmp_path)
    with participants(clients), actor.start(EXAMPLES / "actor.py") as steering:
        printed, _ = steering.communicate()
        assert steering.returncode == 0, printed
    check(eval(printed, {"array": np.array, "float32": np.float32}))


@pytest.mark.examples
def test_a_training_by_the_command(server: Server, tmp_path: Path) -> None:
    actor, clients, ids = people(server, tmp_path)
    initial = {"weight": np.zeros(3, np.float32), "bias": np.zeros(1, np.float32)}
    (tmp_path / "initial.safetensors").write_bytes(fr.to_safetensors(initial))
    asked = ["--name", "typed", "--target-num-updates", "20", "--client", ids[0], "--client", ids[1]]
    made = actor.fedround("training", "create", "initial.safetensors", *asked)
    training_id, model_id = made["training_id"], made["model_id"]
    assert (made["state"], sorted(made["participant_ids"])) == ("TRAINING_STATE_INITIAL", sorted(ids))
    with participants(clients):
        assert actor.fedround("training", "start", training_id)["state"] == "TRAINING_STATE_ONGOING"
        finished = actor.fedround("training", "wait", training_id)
    assert (finished["state"], finished["model_version"]) == ("TRAINING_STATE_COMPLETED", 20)
    assert actor.fedround("training", "show", training_id) == finished
    assert [one["training_id"] for one in actor.fedround("training", "list")] == [training_id]
    actor.fedround("model", "download", model_id, "--output", "final.safetensors")
    check(fr.from_safetensors((tmp_path / "final.safetensors").read_bytes()))


@pytest.mark.examples
@pytest.mark.timeout(900)
def test_the_first_day_is_what_its_commands_print() -> None:
    run = subprocess.run(
        [sys.executable, "scripts/first_day.py", "--check"],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
