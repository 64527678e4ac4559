"""Failpoints: all of them are known, and the real server is killed at them."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.points import READERS, all_points, verbs, writers
from fedround_server import failpoints

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server/fedround_server"


def test_every_point_in_the_code_is_in_the_list() -> None:
    calls = {
        node.args[0].value
        for path in SERVER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "reached" and isinstance(node.args[0], ast.Constant)
    }
    assert calls == set(failpoints.POINTS)


def test_every_point_is_described() -> None:
    page = (ROOT / "docs/failpoints.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z_.]+)` \|", page, re.MULTILINE) == list(failpoints.POINTS)
    assert re.findall(r"`([a-z]+\.[a-z_]+)`", page.rpartition("Those that write are")[2]) == writers()


def test_verbs_that_read_are_verbs() -> None:
    assert verbs() >= READERS
    assert {f"{verb}.begun" for verb in writers()} <= set(all_points())


def test_the_server_dies_where_the_environment_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedround_server", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    environment = {**os.environ, failpoints.VARIABLE: "user.create.written"}
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (run.returncode, run.stdout) == (-signal.SIGKILL, b""), run.stderr
    assert (tmp_path / "data/admin.token").exists()


@pytest.mark.parametrize(("setting", "deadly"), [("a", 1), ("a:1", 1), ("a:3", 3)])
def test_a_kill_comes_when_its_point_is_reached_so_often(
    setting: str, deadly: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: kills.append(number))
    kill = failpoints.Kill(setting)
    for time in range(1, 5):
        kill("b")
        kill("a")
        assert kills == [signal.SIGKILL] * (time >= deadly)


def test_no_failpoint_is_active_unless_configured() -> None:
    heard: list[str] = []
    failpoints.reached("before")
    failpoints.listen(heard.append)
    try:
        failpoints.reached("meanwhile")
    finally:
        failpoints.listen(None)
    failpoints.reached("behind")
    assert heard == ["meanwhile"]
