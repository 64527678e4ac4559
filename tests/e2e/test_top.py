"""`fedround top` as an operator runs it: into a pipe, across a restart of the server, until Ctrl-C."""

import json
import signal
import subprocess
from pathlib import Path

import fedround_client as fr
from e2e.test_command import start
from servers import Server


def line_with(process: "subprocess.Popen[str]", words: str) -> str:
    """The next line with some words."""
    assert process.stdout is not None
    return next(line for line in process.stdout if words in line)


def test_it_goes_on_after_a_restart_and_ends_with_ctrl_c(data_dir: Path) -> None:
    with (
        Server(data_dir) as server,
        start(server.address, server.admin_token, "top", "--interval", "0.2") as process,
    ):
        assert "subscriptions 0" in line_with(process, "calls ")
        server.stop()
        line_with(process, "reconnecting: ")
        server.start()
        line_with(process, "calls ")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_programs_get_one_object_per_line(data_dir: Path) -> None:
    with Server(data_dir) as server, fr.connect(server.address, server.admin_token) as client:
        arguments = ("top", "--once", "--interval", "0.2", "--format", "json")
        with start(server.address, server.admin_token, *arguments) as process:
            stdout, stderr = process.communicate(timeout=90)
        assert (process.returncode, stderr) == (0, "")
        (line,) = stdout.splitlines()
        shown, status = json.loads(line), client.server_status()
        assert shown["status"]["start_time"] == status.start_time.ToJsonString()
        assert shown["rates"]["methods"]["fedround.v1.ServerService/GetServerStatus"] > 0
        assert status.version == shown["status"]["version"]
