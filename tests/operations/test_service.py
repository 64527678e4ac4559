"""What a service manager and a terminal see of a server: readiness, signals, what it logs of its settings."""

import os
import signal
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedround_server.__main__ import _warn_of_secrets, main
from fedround_server.config import Settings
from fedround_server.config import file as config_file
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


def test_the_log_says_which_file_was_read(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("grace_seconds = 1\n")
    with Server(tmp_path / "data", options=("--config", str(file))) as server:
        assert f"path={file}" in next(line for line in server.log.splitlines() if "read settings from a file" in line)


def test_a_start_that_fails_warns_of_a_misspelled_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDROUND_DATABSE", "postgresql:///other")
    (tmp_path / "admin.token").write_text("used")
    assert main(["--data-dir", str(tmp_path), "--listen", "127.0.0.1:0"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert "an environment variable is no setting" in lines[0]
    assert "nearest=FEDROUND_DATABASE variable=FEDROUND_DATABSE" in lines[0]
    assert lines[1].startswith("error: ")


def test_the_log_says_that_a_password_can_be_seen(tmp_path: Path) -> None:
    url = "postgresql://me:secret@127.0.0.1:1/none"
    file = tmp_path / "my.toml"
    file.write_text(f"database = '{url}'\n")
    for mode, words in ((0o644, ["run chmod 600"]), (0o600, [])):
        file.chmod(mode)
        with capture_logs() as lines:
            _warn_of_secrets(Settings(config=file), {})
        assert [word for word in words if word not in lines[0]["event"]] == []
        assert len(lines) == len(words)
    with capture_logs() as lines:
        _warn_of_secrets(Settings(database=url), {"database": url})
    assert "others can see the password in --database" in lines[0]["event"]
    assert "secret" not in str(lines)
    file.unlink()
    assert not config_file.exposes_password(file)
