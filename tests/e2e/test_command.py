"""The `fedround` command as typed by a new user, against a real server and against servers that are broken."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import fedround_client as fr
import forked
from certificates import Authority
from e2e.federation import federation
from servers import Server


def fedround(address: str, token: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a program of its own."""
    with start(address, token, *arguments) as process:
        stdout, stderr = process.communicate(timeout=90)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def forked_fedround(address: str, token: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs the command in a process that has imported everything, which saves it a second."""
    return forked.run("--server", address, *arguments, environment={"FEDROUND_TOKEN": token})


def start(address: str, token: str, *arguments: object) -> "subprocess.Popen[str]":
    """Starts the command, with nothing in its environment that quietens libraries."""
    command = [sys.executable, "-m", "fedround_client", "--server", address, *map(str, arguments)]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "FEDROUND_TOKEN": token}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_training_is_created_shown_and_watched_by_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(fr.to_safetensors({"w": np.zeros(2, np.float32)}))
    with federation(server, 2) as group:
        names = [group.actor.get_user(user_id).name for user_id in group.ids]

        def actor(*arguments: object) -> str:
            ended = forked_fedround(server.address, group.actor_token, *arguments)
            assert (ended.returncode, ended.stderr) == (0, "")
            return ended.stdout

        options = ["--target-num-updates", 2, "--client", names[0], "--client", names[1]]
        created = actor("training", "create", tmp_path / "m.safetensors", "--name", "digits", *options)
        assert "not started" in created
        (training,) = group.actor.trainings()
        actor("training", "start", "digits")

        # One client has sent its update, and the other one has never been there.
        with group.connect(0) as client:
            client.submit_update(training.training_id, 0, {"w": np.ones(2, np.float32)}, 10)
        shown = actor("training", "show", training.training_id[:13])
        assert "1 of 2: training" in shown
        assert "1 of 2 updates" in shown
        assert f"{names[1]} (never connected)" in shown
        assert "WAIT_RULE" not in shown
        assert "1 of 2: training" in actor("training", "round", "digits", 1)
        assert json.loads(actor("training", "show", "digits", "--format", "json"))["round"] == 0

        with start(server.address, group.actor_token, "training", "watch", "digits") as watching:
            assert watching.stdout is not None
            assert "round 1 of 2 is open: training, version 0" in watching.stdout.readline()
            ends = [group.take_part(number, lambda model, _: (model, 1)) for number in range(2)]
            for end in ends:
                end.result(60)
            lines = watching.stdout.read().splitlines()
        assert any(f"round 2 of 2: update of {names[1]}, 1 examples; " in line for line in lines)
        assert "finished: version 2 of model" in lines[-1]
        listed = actor("training", "clients", "list", "digits")
        assert all(name in listed for name in names)
        assert "2/2" in actor("training", "list")


def test_a_failed_handshake_is_one_sentence_without_lines_of_grpc(server: Server, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(Authority().pem)
    ended = fedround(server.address, "fr_any", "user", "show", "--tls-ca", tmp_path / "ca.pem")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


class Garbage(grpc.GenericRpcHandler):
    """Answers every call with bytes that are no message: field 1 is text that is not UTF-8."""

    def service(self, details: Any) -> Any:
        answer = b"\x0a\x04\x12\x02\xff\xfe"
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


def test_an_answer_that_is_not_utf_8_is_one_sentence() -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Garbage(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        ended = fedround(f"127.0.0.1:{port}", "fr_any", "audit", "verify", "--format", "json")
    finally:
        server.stop(None).wait()
    assert ended.returncode == 3
    assert json.loads(ended.stderr)["reason"] == "RESPONSE_INVALID"
