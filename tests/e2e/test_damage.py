"""Bits that are flipped on the way or on the server's disk, and files that are gone: never a wrong model.

A chunk that was damaged on the way is found by the SDK, which goes on behind the last good byte. A file that was
damaged at rest is found when it is aggregated or served.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest

import fedround_client as fr
from calls import Person, download, fails_with, new_number, until
from damage import flip, stored
from e2e.federation import federation, users
from fedround_server.blobs import BLOCK_BYTES
from servers import Server
from wire import Wire

# In the middle of the file, and often enough to lie within one piece of what the wire carries.
MARK = b"\xa5" * 64
MODEL = {"w": np.arange(2_000_000, dtype=np.float32)}
MODEL["w"][1_000_000:1_004_000] = np.frombuffer(MARK, np.float32)[0]


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


@pytest.fixture
def fresh(data_dir: Path, database: str) -> Iterator[Server]:
    with Server(data_dir, database=database) as running:
        yield running


def objects(server: Server) -> set[Path]:
    return set((server.data_dir / "objects").glob("*/*"))


@pytest.mark.parametrize("damage", [lambda path: flip(path, -1), Path.unlink], ids=["flipped", "removed"])
def test_an_update_that_was_damaged_at_rest_is_asked_for_anew(fresh: Server, damage: Callable[[Path], None]) -> None:
    may_send = Event()
    calls = [0, 0]

    def trains(number: int) -> tuple[Any, ...]:
        def train(model: Any, _: fr.Round) -> tuple[Any, int]:
            calls[number] += 1
            if number:
                assert may_send.wait(100)
            return {"w": model["w"] + 2 * number + 1}, 1

        return (train,)

    with federation(fresh, 2) as some:
        model = {"w": np.arange(500_000, dtype=np.float32)}
        made = some.actor.create_training(model, name="t", client_ids=some.ids, target_num_updates=1)
        before = objects(fresh)
        some.actor.start_training(made.training_id)
        ends = [some.take_part(number, *trains(number)) for number in range(2)]
        until(lambda: some.actor.get_training(made.training_id).updates_arrived == 1)
        (first,) = objects(fresh) - before
        damage(first)
        may_send.set()
        assert [end.result(100).rounds for end in ends] == [1, 1]
        assert calls == [2, 1]
        after = some.actor.get_training(made.training_id)
        assert np.array_equal(some.actor.download_model(after.model_id)["w"], model["w"] + 2)
        round_ = some.actor.get_round(made.training_id, 0)
        assert round_.attempt == 2
        (lost,) = [one for member in round_.participants for one in member.rejected_updates]
        assert (lost.reason, lost.count) == ("UPDATE_LOST", 1)
    assert f"the file objects/{first.parent.name}/{first.name} is " in fresh.log
    with fr.connect(fresh.address, fresh.admin_token) as admin:
        report = admin.verify_audit()
        assert (report.updates, report.counted, report.superseded) == (3, 2, 1)


def test_a_model_that_was_damaged_at_rest_is_not_sent(fresh: Server) -> None:
    token, _ = users(fresh, 0)
    size = 3 * BLOCK_BYTES
    with fr.connect(fresh.address, token) as client, grpc.insecure_channel(fresh.address) as channel:
        model = client.upload_model({"w": np.frombuffer(np.random.default_rng(1).bytes(size), np.uint8)})
        path = stored(fresh.data_dir, model.sha256)
        good = path.read_bytes()
        flip(path, BLOCK_BYTES + 5)
        words = f"version 0 of the model {model.model_id}", f"objects/{model.sha256[:2]}/{model.sha256}"
        person = Person(channel, token)
        for offset in (0, 7, BLOCK_BYTES, BLOCK_BYTES + 100):
            with fails_with("DATA_LOSS", "MODEL_DAMAGED", *words, f"between the bytes {BLOCK_BYTES} and"):
                download(person, model.model_id, offset=offset)
        # What lies behind the damage can be read.
        assert download(person, model.model_id, offset=2 * BLOCK_BYTES + 1)[1] == good[2 * BLOCK_BYTES + 1 :]
        with pytest.raises(fr.ModelDamaged, match="restore it from a backup"):
            client.download_model(model.model_id)
        assert words[0] in fresh.log
        path.unlink()
        with pytest.raises(fr.ModelDamaged, match="is missing"):
            client.download_model(model.model_id)
        path.write_bytes(good)
        assert client.download_model(model.model_id)["w"].size == size


@pytest.mark.chaos
def test_a_round_waits_until_its_damaged_model_is_restored(fresh: Server) -> None:
    token, ((user_id, client_token),) = users(fresh, 1)
    with fr.connect(fresh.address, token) as actor:
        model = actor.upload_model({"w": np.full(10, new_number(), np.float64)})
        made = actor.create_training(model_id=model.model_id, name="t", client_ids=[user_id], target_num_updates=1)
        actor.start_training(made.training_id)
        path = stored(fresh.data_dir, model.sha256)
        good = path.read_bytes()
        flip(path, -1)
        with fr.connect(fresh.address, client_token) as client:
            client.submit_update(made.training_id, 0, {"w": np.zeros(10)}, 1)
        file = f"objects/{model.sha256[:2]}/{model.sha256}"
        until(lambda: file in actor.get_round(made.training_id).waiting_for)
        assert "restored from a backup" in actor.get_round(made.training_id).waiting_for
        path.write_bytes(good)
        after = actor.wait(made.training_id, timeout=100)
        assert np.array_equal(actor.download_model(after.model_id)["w"], np.zeros(10))


@pytest.mark.chaos
def test_a_round_waits_until_the_damaged_state_of_its_optimizer_is_restored(fresh: Server) -> None:
    token, ((user_id, client_token),) = users(fresh, 1)
    with fr.connect(fresh.address, token) as actor, fr.connect(fresh.address, client_token) as client:
        made = actor.create_training(
            {"w": np.ones(10)},
            name="t",
            client_ids=[user_id],
            target_num_updates=2,
            aggregation=fr.FedAvgM(momentum=0.5),
        )
        actor.start_training(made.training_id)
        client.submit_update(made.training_id, 0, {"w": np.full(10, 5.0)}, 1)
        until(lambda: actor.get_round(made.training_id).number == 1)
        versions = {version.sha256 for version in actor.model_versions(made.model_id)}
        state = np.full(10, 4.0).tobytes()
        (path,) = (path for path in objects(fresh) if path.name not in versions and path.read_bytes().endswith(state))
        good = path.read_bytes()
        flip(path, -1)
        client.submit_update(made.training_id, 1, {"w": np.full(10, 7.0)}, 1)
        until(lambda: path.name in actor.get_round(made.training_id).waiting_for)
        path.write_bytes(good)
        after = actor.wait(made.training_id, timeout=100)
        # v was 4, and is 4 / 2 + (7 - 5).
        assert np.array_equal(actor.download_model(after.model_id)["w"], np.full(10, 5.0 + 4.0))
