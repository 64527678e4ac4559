"""`fedround health`, a probe for service managers and container platforms."""

from pathlib import Path

import grpc
import pytest

import forked
from calls import Person, model_file
from certificates import Authority
from servers import Server
from service.test_drain import signal_and_see
from service.uploads import Halted, storing


def health(address: str, *options: str) -> tuple[int, str]:
    """Runs the command without a token; returns its exit code and what it prints."""
    ended = forked.run("--server", address, "health", *options, environment={})
    return ended.returncode, ended.stdout.strip() or ended.stderr


def test_a_server_that_serves(server: Server) -> None:
    assert health(server.address) == (0, "SERVING")
    assert health(server.address, "--service", "fedround.v1.RoundService") == (0, "SERVING")
    assert health(server.address, "--service", "x" * 300) == (1, "SERVICE_UNKNOWN")


@pytest.mark.parametrize("options", [(), ("--live",)])
def test_a_server_that_is_not_there(options: tuple[str, ...]) -> None:
    code, text = health("127.0.0.1:9", *options)
    assert (code, text.startswith("error: ")) == (1, True)


@pytest.mark.parametrize("options", [("--timeout=0",), ("--service",), ("--insecure", "--tls-ca", "ca.pem")])
def test_wrong_options(options: tuple[str, ...]) -> None:
    assert health("127.0.0.1:9", *options)[0] == 2


def test_a_server_that_drains_is_live_and_not_ready(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", options=("--grace-seconds", "1h")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        admin = Person(channel, server.admin_token)
        with Halted(server, storing(admin), model_file(7)) as halted:
            signal_and_see(server, admin)
            assert health(server.address) == (1, "NOT_SERVING")
            assert health(server.address, "--live") == (0, "NOT_SERVING")
            halted.finish()
        assert server.wait() == 0
        server.start()


def test_a_server_with_mutual_tls_is_asked_with_its_own_certificate(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    cert, key = authority.issue("127.0.0.1").write(tmp_path, "server")
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    ca = ("--tls-ca", str(tmp_path / "ca.pem"))
    with Server(tmp_path / "data", options=(*options, "--tls-client-ca", ca[1])) as server:
        assert health(server.address, *ca, *options) == (0, "SERVING")
        code, text = health(server.address, *ca)
        assert (code, "client certificate" in text) == (1, True)
