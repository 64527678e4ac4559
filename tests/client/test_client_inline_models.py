"""Models that come with the starts of rounds: who asks for them, and what is done with them."""

import logging

import pytest

from client.rounds import Rounds, file_of, finished, round_started
from client.scripted import OK, TRAINING, until
from fedround_client import Client
from fedround_client.round_runner import RoundRunner
from fedround_client.subscription import INLINE_MODEL_BYTES

pytestmark = pytest.mark.timeout(60)


def begin(rounds, sequence, number, **started):
    """Starts a round, about which the participant asks: its clock stands still."""
    rounds.send(round_started(sequence, number, **started))
    rounds.training_is_at(number)


def is_downloaded(server):
    """Whether a download waits to be served."""
    return bool(server.channel._state._rpc_states["/fedround.v1.ModelService/DownloadModel"])


@pytest.fixture
def reported(monkeypatch):
    """The progress of all transfers."""
    found = []
    monkeypatch.setattr(RoundRunner, "_transfer_log", lambda _, what: lambda *sizes: found.append((what, *sizes)))
    return found


def test_a_participant_asks_for_small_models_and_does_not_download_them(server, reported):
    rounds = Rounds(server)
    assert rounds.request.inline_model_bytes == INLINE_MODEL_BYTES == 1 << 20
    file = file_of(0)
    begin(rounds, 1, 0, inline_model=file)
    assert rounds.take_update()[1].tolist() == [1, 1, 1]
    assert ("downloading", len(file), len(file)) in reported
    begin(rounds, 2, 1, inline_model=file_of(1))
    assert rounds.take_update()[1].tolist() == [2, 2, 2]
    rounds.send(finished(3))
    assert rounds.result().rounds == 2
    assert not is_downloaded(server)


def test_a_model_with_another_digest_is_downloaded(server, caplog):
    rounds = Rounds(server)
    with caplog.at_level(logging.WARNING):
        begin(rounds, 1, 0, inline_model=file_of(5))
        rounds.serve_model(0)
        assert rounds.take_update()[1].tolist() == [1, 1, 1]
    assert "has another SHA-256" in caplog.text
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


def test_a_server_that_does_not_send_models_is_asked_for_them(server):
    rounds = Rounds(server)
    rounds.run_round(1, 0)
    rounds.send(finished(2))
    assert rounds.result().rounds == 1


@pytest.mark.parametrize("folder", [None, "cache"])
def test_a_model_that_came_is_cached(server, tmp_path, folder):
    rounds = Rounds(server, cache=folder and tmp_path / folder)
    begin(rounds, 1, 0, inline_model=file_of(0))
    rounds.take_update()
    # The same version again, which the server does not send twice.
    begin(rounds, 2, 1, version=0)
    assert rounds.take_update()[1].tolist() == [1, 1, 1]
    rounds.send(finished(3))
    assert rounds.result().rounds == 2
    assert not is_downloaded(server)
    if folder is not None:
        assert [path.read_bytes() for path in (tmp_path / folder).iterdir()] == [file_of(0)]


def test_compressed_files_are_downloaded(server):
    server.client = Client(server.channel, "secret", address="there:1", clock=server.time, compression="gzip")
    rounds = Rounds(server)
    assert rounds.request.inline_model_bytes == 0
    rounds.send(finished(1))
    rounds.result()


def test_who_watches_asks_for_no_models(server):
    watching = server.run(lambda: list(server.client.watch(TRAINING)))
    request, rpc = server.stream("Subscribe")
    assert request.inline_model_bytes == 0
    rpc.terminate(*OK)
    until(watching.done)
