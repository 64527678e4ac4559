"""The participant in JavaScript of examples/node, in trainings with Python ones."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedround_client as fr
from calls import until
from chaos.proxy import Fate, Proxy
from e2e.federation import State, users
from scripted_peers import dead_port
from servers import Server
from unit.exactly import mean

pytestmark = pytest.mark.examples

FOLDER = Path(__file__).parents[2] / "examples/node"
# A file of more than one chunk.
FEATURES = 300_000
CHUNK = 3 << 18
NODE_EXAMPLES = 16
# A participant with a train function of the test's.
PROGRAM = """
import { Participant } from "./fedround/participate.js";
import { Server } from "./fedround/server.js";
const server = new Server(process.env.FEDROUND_SERVER, process.env.FEDROUND_TOKEN);
const train = %s;
await new Participant(server, train, undefined, console.log).run().finally(() => server.close());
"""
WAITS_UNTIL_OVER = """(model, { number, signal }) => number
  ? { model, numExamples: 1 }
  : new Promise((resolve) => signal.addEventListener("abort", () => resolve({ model, numExamples: 1 })))"""


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    """Installs what the participant needs, as its README says."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    installed, lock = FOLDER / "node_modules/.package-lock.json", FOLDER / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"npm ci failed: {run.stderr[-300:]}")


class Node:
    """A participant in JavaScript."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def wait(self) -> int:
        return self._process.wait(200)


@contextmanager
def node(address: str, token: str, log: Path, train: str = "") -> Iterator[Node]:
    """Runs the example, or a participant with another train function."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
    environment |= {"FEDROUND_SERVER": address, "FEDROUND_TOKEN": token}
    command = ["node", *(("--input-type=module", "--eval", PROGRAM % train) if train else ("participant.js",))]
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=FOLDER, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        try:
            yield Node(process, log)
        finally:
            process.kill()


def participate(server: Server, token: str, *functions: Any) -> fr.Participation:
    with fr.connect(server.address, token) as client:
        return client.participate(*functions)


def half(model: State, round: fr.Round) -> tuple[State, int]:
    """A train function for Python: moves the weights halfway to 1."""
    return {name: (tensor + np.float32(1)) / np.float32(2) for name, tensor in model.items()}, 8


def loss(model: State, round: fr.Round) -> tuple[dict[str, float], int]:
    return {"loss": float(np.square(model["weight"] - 2).mean())}, 8


def expected_mean(updates: list[State], weights: list[int]) -> State:
    """The weighted means, correctly rounded: in float64 where that adds without an error, elsewhere by fractions."""
    means = {}
    for name in updates[0]:
        terms = [
            update[name].astype(np.float64).ravel() * weight for update, weight in zip(updates, weights, strict=True)
        ]
        total, is_exact = terms[0], np.ones(terms[0].shape, bool)
        for term in terms[1:]:
            added = total + term
            # Knuth's TwoSum: the error of the addition.
            part = added - total
            is_exact &= (total - (added - part)) + (term - part) == 0
            total = added
        assert sum(weights).bit_count() == 1, "the division must be exact"
        found = (total / sum(weights)).astype(np.float32)
        rest = np.flatnonzero(~is_exact)
        found[rest] = mean([update[name].ravel()[rest] for update in updates], weights)
        means[name] = found.reshape(updates[0][name].shape)
    return means


def test_a_javascript_participant_trains_with_python_ones_over_a_bad_network(server: Server, tmp_path: Path) -> None:
    actor_token, clients = users(server, 3)
    model = {"weight": np.zeros(FEATURES, np.float32), "bias": np.zeros((), np.float32)}
    size = len(fr.to_safetensors(model))
    # The first connection carries nothing more behind the first chunk of the first upload.
    fates = [Fate(lives=size + 5 * CHUNK // 4, end="hole"), Fate()]
    with (
        Proxy(server.address, lambda number: fates[min(number, 1)]) as proxy,
        ThreadPoolExecutor(2) as pool,
        fr.connect(server.address, actor_token) as actor,
        node(proxy.address, clients[0][1], tmp_path / "node.log") as javascript,
    ):
        python = [pool.submit(participate, server, token, half, loss) for _, token in clients[1:]]
        training = actor.create_training(
            model, name="mixed", target_num_updates=2, metric_names=["loss"], client_ids=[id_ for id_, _ in clients]
        )
        actor.start_training(training.training_id)

        def uploaded() -> int:
            round_ = actor.get_round(training.training_id, 0)
            return next(one.uploaded_bytes for one in round_.participants if one.user_id == clients[0][0])

        until(lambda: uploaded() >= CHUNK)
        # Ends the upload, and the subscription.
        proxy.cut()
        for event in actor.watch(training.training_id):
            if event.HasField("round_closed"):
                break
        until(lambda: "subscribing again behind" in javascript.log)
        server.stop()
        server.start()
        finished = actor.wait(training.training_id, timeout=200)
        assert (finished.model_version, finished.round) == (2, 3)
        assert javascript.wait() == 0, javascript.log
        assert [end.result().rounds for end in python] == [4, 4]

        log = javascript.log
        assert proxy.struck == 1
        resumed = re.search(r"round 1: the upload goes on at byte (\d+) of (\d+)", log)
        assert resumed is not None, log
        assert (int(resumed[1]), int(resumed[2])) == (CHUNK, size)
        assert len(re.findall("is accepted", log)) == 4
        # Behind the cut, and behind the restart of the server.
        assert log.count("subscribing again behind") >= 2

        reports = [one for one in actor.metrics(finished.model_id) if one.reporter_id == clients[0][0]]
        assert [one.round for one in reports] == [0, 1, 2, 3]
        assert reports[1].metrics["loss"] > reports[3].metrics["loss"] > 0
        objects = server.data_dir / "objects"
        for version in (1, 2):
            counted = actor.contributions(finished.model_id, version)[1]
            assert sorted(one.num_examples for one in counted) == [8, 8, NODE_EXAMPLES]
            updates = [load_file(objects / one.sha256[:2] / one.sha256) for one in counted]
            expected = expected_mean(updates, [one.num_examples for one in counted])
            found = actor.download_model(finished.model_id, version)
            assert {name: tensor.tobytes() for name, tensor in found.items()} == {
                name: tensor.tobytes() for name, tensor in expected.items()
            }


def test_a_javascript_participant_reports_what_it_cannot_do(server: Server, tmp_path: Path) -> None:
    actor_token, [(user_id, token)] = users(server, 1)
    model = {"weight": np.zeros(3, np.float32), "bias": np.zeros((), np.float32)}
    cases: list[tuple[str, dict[str, Any], str, str, int]] = [
        ("", {"trainable": ["bias"]}, "UNSUPPORTED_ROUND", "it sends all tensors of the model, not some", 0),
        ("", {"aggregation": fr.Scaffold()}, "UNSUPPORTED_ROUND", "it does not know the rule scaffold", 0),
        ("() => { throw new Error('no data today'); }", {}, "TRAIN_FAILED", "no data today", 1),
        ("(model) => ({ model: new Map([...model].slice(1)), numExamples: 1 })", {}, "TENSORS_MISMATCH", "bias", 1),
    ]
    with fr.connect(server.address, actor_token) as actor:
        for train, spec, reason, message, code in cases:
            training = actor.create_training(model, name="x", target_num_updates=1, client_ids=[user_id], **spec)
            actor.start_training(training.training_id)
            with node(server.address, token, tmp_path / "node.log", train) as javascript:
                failures = [
                    e.participant_failed for e in actor.watch(training.training_id) if e.HasField("participant_failed")
                ]
                assert javascript.wait() == code, javascript.log
            assert [one.reason for one in failures] == [reason]
            assert message in failures[0].message


def test_a_javascript_participant_learns_that_its_work_is_not_needed(server: Server, tmp_path: Path) -> None:
    actor_token, clients = users(server, 2)
    with fr.connect(server.address, actor_token) as actor, ThreadPoolExecutor(1) as pool:
        training = actor.create_training(
            {"weight": np.zeros(3, np.float32)},
            name="first",
            target_num_updates=2,
            client_ids=[id_ for id_, _ in clients],
            cohort=fr.Cohort(size=1, over_selection=2),
        )
        actor.start_training(training.training_id)
        # Of two addresses, one at which there is nothing.
        addresses = f"{dead_port()},{server.address}"
        with node(addresses, clients[0][1], tmp_path / "node.log", WAITS_UNTIL_OVER) as javascript:

            def train(model: State, round: fr.Round) -> tuple[State, int]:
                until(round.is_over if round.number else lambda: "round 1: training" in javascript.log)
                return model, 1

            python = pool.submit(participate, server, clients[1][1], train)
            finished = actor.wait(training.training_id, timeout=200)
            assert javascript.wait() == 0, javascript.log
        assert python.result().rounds == 1
        assert "round 1: over, so nothing is sent" in javascript.log
        for version, user_id in ((1, clients[1][0]), (2, clients[0][0])):
            assert [one.user_id for one in actor.contributions(finished.model_id, version)[1]] == [user_id]
