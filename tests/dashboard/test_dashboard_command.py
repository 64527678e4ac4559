"""`fedround dashboard`: what it prints, what it refuses, and how it ends."""

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner

from dashboard.conftest import People
from dashboard.visitor import Visitor
from fedround_client.command import app


@contextmanager
def running(people: People, token: str, *options: str) -> Iterator[tuple[Any, str]]:
    """Yields the process of a dashboard, and what it prints first."""
    environment = {**os.environ, "FEDROUND_SERVER": people.server.address, "FEDROUND_TOKEN": token}
    command = [sys.executable, "-m", "fedround_client", "dashboard", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline() + (process.stdout.readline() if token else "")
        finally:
            process.kill()


def test_it_prints_its_address_and_a_link_that_signs_in(people: People) -> None:
    with running(people, people.viewer.token) as (process, printed):
        port, key = re.findall(r"http://127\.0\.0\.1:(\d+)/sign-in/link\?key=([\w-]{43})\n", printed)[0]
        assert f"The dashboard of {people.server.address} is at http://127.0.0.1:{port}/\n" in printed
        assert "Sign in as screen with this link" in printed
        visitor = Visitor(int(port))
        assert visitor.get("/").status == 303
        assert visitor.get(f"/sign-in/link?key={key}").status == 200
        assert "screen viewer" in visitor.get("/").text
        with visitor.stream("/live") as stream:
            assert stream.next()[0] == "live"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        output, errors = process.communicate()
        assert output == ""
        assert people.viewer.token not in errors


def test_over_https_cookies_are_secure(people: People, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(certificate)
    made.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = ("--https-cert", str(certificate), "--https-key", str(key))
    with running(people, people.viewer.token, *options) as (_, printed):
        port, path = re.findall(r"https://127\.0\.0\.1:(\d+)(/sign-in/link\S+)", printed)[0]
        connection = http.client.HTTPSConnection("127.0.0.1", int(port), context=context)
        connection.request("GET", path)
        response = connection.getresponse()
        cookie = response.headers["Set-Cookie"]
        connection.close()
    assert response.status == 200
    assert cookie.startswith("__Host-fedround_")
    assert "; Secure" in cookie


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "8080"], "is not HOST:PORT"),
        (["--listen", "0.0.0.0:0"], "--allowed-host NAME"),
        (["--listen", "0.0.0.0:0", "--allowed-host", "dash.example"], "Tokens could be read on the way"),
        (["--listen", "192.0.2.1:0"], "Tokens could be read on the way"),
        (["--https-cert", "cert.pem"], "belong together"),
        (["--server", "http://127.0.0.1:1"], "is a URL"),
    ],
)
def test_what_is_not_safe_is_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["dashboard", *options], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert message in result.output


def test_a_wrong_token_of_the_operator_is_found_at_the_start(people: People) -> None:
    environment = {"FEDROUND_SERVER": people.server.address, "FEDROUND_TOKEN": "fr_wrong"}
    result = CliRunner().invoke(app, ["dashboard", "--listen", "127.0.0.1:0"], env=environment)
    assert result.exit_code == 1
    assert "TOKEN_INVALID" in result.output


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = util.find_spec
    monkeypatch.setattr(
        "fedround_client.command.dashboard.find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    result = CliRunner().invoke(app, ["dashboard"])
    assert result.exit_code == 1
    assert 'pip install "fedround[dashboard]"' in result.output


def test_a_port_in_use_is_said_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDROUND_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(app, ["dashboard", "--listen", address])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: LISTEN_FAILED: Cannot listen on {address}: Address already in use.")
