"""The servers of the tests: each at a port of its own, and none left behind."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servers import MODULE, Server


@pytest.mark.parametrize("program", [(), MODULE])
def test_the_port_stays_the_servers_while_it_is_down(program: tuple[str, ...], tmp_path: Path) -> None:
    with Server(tmp_path / "data", program=program) as server:
        host, port = server.address.split(":")
        server.kill()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))
        with socket.socket() as client:
            assert client.connect_ex((host, int(port))) != 0
        server.start()
        with socket.create_connection((host, int(port))):
            pass


@pytest.mark.parametrize("program", [(), MODULE])
def test_a_start_that_fails_leaves_no_process(program: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--database", "postgresql:///nobody?host=/nowhere")
    server = Server(tmp_path / "data", options=options, program=program)
    with pytest.raises(AssertionError), server:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_workers_are_forked_although_a_server_was_killed_while_it_asked_for_one() -> None:
    code = (
        "import os, socket, forked_workers\n"
        "address = forked_workers.start()\n"
        "with socket.socket(socket.AF_UNIX) as killed:\n"
        "    killed.connect(address)\n"
        "worker = forked_workers.ForkedLater().Process(target=os.getpid)\n"
        "worker.start()\n"
        "worker.join()\n"
        "assert worker.exitcode == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, timeout=60)
