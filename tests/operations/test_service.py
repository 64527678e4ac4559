"""What a service manager and a terminal see of a server: readiness, signals, what it logs of its settings."""

import os
import signal
import socket
from pathlib import Path

import pytest

from forked import fork_server
from servers import MODULE, Server


def test_a_service_manager_is_told_and_a_server_under_nohup_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with Server(tmp_path / "data", program=MODULE) as server:
                signal.signal(signal.SIGHUP, before)
                assert manager.recv(1000).decode() == f"READY=1\nSTATUS=serving on {server.address}"
                os.kill(server.pid, signal.SIGHUP)
                assert server.stop() == 0
                assert manager.recv(1000).decode().splitlines()[0] == "STOPPING=1"
                assert server.log.count("stopping") == 1
                server.start()
        finally:
            signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path / "data") as server:
        os.kill(server.pid, number)
        assert server.wait() == 0
        assert "stopping" in server.log
        server.start()


def test_the_log_says_which_file_was_read_and_that_its_password_is_exposed(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("database = 'postgresql://me:secret@127.0.0.1:1/none'\n")
    file.chmod(0o644)
    log = tmp_path / "log"
    for arguments, words in (
        (["--config", str(file)], ["read settings from a file", "run chmod 600"]),
        (["--database", "postgresql://me:secret@127.0.0.1:1/none"], ["others can see the password in --database"]),
    ):
        log.unlink(missing_ok=True)
        process = fork_server().fork(["--data-dir", str(tmp_path / "data"), *arguments], stderr=log)
        with process.stdout:
            assert process.wait(60) == 1
        assert [word for word in words if word not in log.read_text()] == []
        assert "secret" not in log.read_text()
