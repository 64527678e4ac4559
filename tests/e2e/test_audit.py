"""`fedround audit` and `fedround model contributions` against a real server, its data, and copies that were changed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedround_client as fr
from e2e.federation import federation
from fedround_client.command import app
from servers import Server


@pytest.fixture(scope="module")
def training(server: Server) -> tuple[str, str]:
    """A model that two clients trained twice, and its owner's token."""
    import numpy as np

    def functions(number: int) -> tuple[Any, ...]:
        return (lambda model, _: ({"w": model["w"] + number}, 10 * (number + 1)),)

    with federation(server, 2) as group:
        made = group.run(functions, {"w": np.zeros(2, np.float32)}, target_num_updates=2)
        return made.model_id, group.actor_token


@pytest.fixture
def fedround(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command in the name of the admin."""
    monkeypatch.delenv("FEDROUND_DATABASE", raising=False)

    def run(*arguments: object, token: str = "", code: int = 0) -> Any:
        environment = {"FEDROUND_SERVER": server.address, "FEDROUND_TOKEN": token or server.admin_token}
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.mark.usefixtures("training")
def test_the_log_is_verified_where_it_is_and_against_a_recorded_head(
    server: Server, fedround: Callable[..., Any]
) -> None:
    online = fedround("audit", "verify").stdout
    assert "4 accepted: 4 counted, 0 superseded, 0 waiting." in online
    assert "Versions produced from them: 2." in online
    head = online.split()[-1]
    assert fr.AuditHead.parse(head).sequence > 5
    assert "entries in 2 chains." in online
    assert fedround("audit", "head").stdout == f"{head}\n"
    offline = json.loads(
        fedround("audit", "verify", "--data-dir", server.data_dir, "--head", head, "--format", "json").stdout
    )
    assert (offline["head"], offline["counted"]) == (head, 4)
    forged = head[:-1] + ("0" if head[-1] != "0" else "1")
    broken = fedround("audit", "verify", "--head", forged, code=1)
    assert f"AUDIT_BROKEN: entry {head.split(':')[0]}: has another hash than the head" in broken.stderr
    assert "SEQUENCE:HASH" in fedround("audit", "verify", "--head", "12", code=2).output


def test_one_chain_is_said_to_be_one(tmp_path: Path, fedround: Callable[..., Any]) -> None:
    with Server(tmp_path / "data") as new:
        assert " entries in 1 chain.\n" in fedround("audit", "verify", "--data-dir", new.data_dir).stdout


@pytest.mark.usefixtures("training")
def test_a_copy_that_was_changed_is_found(server: Server, fedround: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    # From now on the heads are recorded, so that reading the log adds nothing to it.
    fedround("audit", "head")
    fedround("audit", "export", file, "--data-dir", server.data_dir)
    offline = file.read_text()
    assert "--force" in fedround("audit", "export", file, code=2).output
    fedround("audit", "export", file, "--force")
    assert file.read_text() == offline
    fedround("audit", "verify", "--file", file)
    lines = offline.splitlines(keepends=True)
    changed = json.loads(lines[4])
    changed["user_id"] = ""
    last = json.loads(lines[-2])
    chain = f"of the training {last['chain']}"
    server_chain = next(number for number, line in enumerate(lines, 1) if '"head"' in line)
    for copy, problem in (
        ([*lines[:4], json.dumps(changed) + "\n", *lines[5:]], "entry 5: its hash does not match its fields"),
        ([*lines[:4], *lines[5:]], "entry 5: is missing"),
        (lines[:-1], f"entry {last['sequence'] + 1} {chain}: may be missing: there is no head of the chain"),
        ([*lines[:-2], lines[-1]], f"entry {last['sequence']} {chain}: is missing: the log was cut off"),
        (lines[:server_chain], f"entry 1 {chain}: is missing, with the whole chain"),
        ([*lines[:4], lines[4][:50] + "\n"], "entry 5: line 5 is not an entry of an export"),
    ):
        file.write_text("".join(copy))
        assert f"AUDIT_BROKEN: {problem}" in fedround("audit", "verify", "--file", file, code=1).stderr


def test_an_invalid_database_is_reported(fedround: Callable[..., Any], tmp_path: Path, capfd: Any) -> None:
    fedround("audit", "verify", "--data-dir", tmp_path, code=3)
    assert "error: the database cannot be read" in capfd.readouterr().err


def test_a_reader_whose_output_is_closed_ends_in_silence(server: Server) -> None:
    command = [sys.executable, "-m", "fedround_server.audit", "--data-dir", str(server.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        reader.stdout.close()
        assert reader.stderr.read() == ""
    assert reader.returncode == 1


def test_who_made_a_version(server: Server, training: tuple[str, str], fedround: Callable[..., Any]) -> None:
    model_id, token = training
    header, *rows = fedround("model", "contributions", model_id, token=token).stdout.splitlines()
    assert header.split() == ["ROUND", "PARTICIPANT", "USER_ID", "UPDATE_ID", "EXAMPLES", "WEIGHT", "SHA256"]
    assert sorted((row.split()[0], row.split()[-2]) for row in rows) == [("2", "10/30"), ("2", "20/30")]
    first = fedround("model", "contributions", model_id, "--version", 1, "--format", "json", token=token)
    assert {one["round"] for one in json.loads(first.stdout)} == {0}
    with fr.connect(server.address, token) as actor:
        origin, contributions = actor.contributions(model_id, 1)
    assert (origin.version, origin.round, len(contributions)) == (1, 0, 2)
