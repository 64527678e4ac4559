import pytest

from client.scripted import Server


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("FEDROUND_SERVER", raising=False)
    monkeypatch.delenv("FEDROUND_TOKEN", raising=False)
