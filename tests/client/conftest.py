import functools

import pytest
from typer import testing
from typer.testing import CliRunner

from client.scripted import Server
from fedround_client.command import app, session


@pytest.fixture(scope="session", autouse=True)
def _made_once():
    """Makes the command once: typer makes it anew for each call, which takes longer than most of the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "_get_command", functools.cache(testing._get_command))
        yield


@pytest.fixture
def server():
    return Server()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("FEDROUND_SERVER", raising=False)
    monkeypatch.delenv("FEDROUND_TOKEN", raising=False)


@pytest.fixture
def command(server, monkeypatch):
    """Runs the command with the scripted server, in another thread."""

    def connect(address, token, **options):
        monkeypatch.setattr(server, "connected", (address, token, options), raising=False)
        return server.client

    monkeypatch.setattr(session, "connect", connect)
    monkeypatch.setenv("FEDROUND_TOKEN", "my-secret-token")

    def run(*arguments):
        return server.run(CliRunner().invoke, app, [str(argument) for argument in arguments])

    return run
