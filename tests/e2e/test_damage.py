"""A connection that flips a bit: the SDK finds it at its chunk, and goes on behind the last good byte."""

from collections.abc import Iterator

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import users
from servers import Server
from wire import Wire

# In the middle of the file, and often enough to lie within one piece of what the wire carries.
MARK = b"\xa5" * 64
MODEL = {"w": np.arange(2_000_000, dtype=np.float32)}
MODEL["w"][1_000_000:1_004_000] = np.frombuffer(MARK, np.float32)[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("damage") / "data") as running:
        yield running


def test_a_damaged_upload_is_mended(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    token, _ = users(server, 0)
    with Wire(server.address, damages=MARK) as wire, fr.connect(wire.address, token) as damaged:
        sent: list[int] = []
        model = damaged.upload_model(MODEL, progress=lambda done, _: sent.append(done))
        assert wire.has_damaged.is_set()
    assert "CHUNK_CORRUPT" in caplog.text
    # It went on in the middle.
    assert sent.count(sent[0]) == 1
    with fr.connect(server.address, token) as client:
        assert np.array_equal(client.download_model(model.model_id)["w"], MODEL["w"])


def test_a_damaged_download_is_mended(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    token, _ = users(server, 0)
    with fr.connect(server.address, token) as client:
        model = client.upload_model(MODEL)
    with Wire(server.address, damages=MARK) as wire, fr.connect(wire.address, token) as damaged:
        received: list[int] = []
        state = damaged.download_model(model.model_id, progress=lambda done, _: received.append(done))
        assert wire.has_damaged.is_set()
    assert "CHUNK_CORRUPT" in caplog.text
    assert np.array_equal(state["w"], MODEL["w"])
    assert received == sorted(set(received))
