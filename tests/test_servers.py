"""The servers of the tests: each at a port of its own, and none left behind."""

import os
import socket
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
