"""The SDK against a real server: whole trainings, and what comes back after a restart."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import fedround_client as fr
from calls import until
from e2e.federation import users
from fedround.v1 import round_pb2, training_pb2
from fedround_client.payload import Payload
from fedround_client.subscription import Subscription
from servers import Server

MODEL = {"weight": np.zeros((4, 3), np.float32), "steps": np.array(0, np.int64)}


@pytest.fixture
def server(data_dir: Path, database: str) -> Iterator[Server]:
    with Server(data_dir, database=database) as running:
        yield running


def train(model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
    return fr.Update({**model, "weight": model["weight"] + np.float32(1)}, 10, {"loss": 0.5})


def evaluate(model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, float], int]:
    return {"accuracy": float(model["weight"].mean())}, 5


def participate(server: Server, token: str) -> fr.Participation:
    with fr.connect(server.address, token) as client:
        return client.participate(train, evaluate)


def test_a_training_with_evaluation_runs_end_to_end(server: Server) -> None:
    actor_token, clients = users(server, 3)
    with ThreadPoolExecutor(3) as pool, fr.connect(server.address, actor_token) as actor:
        ends = [pool.submit(participate, server, token) for _, token in clients]
        training = actor.create_training(
            MODEL, name="whole", target_num_updates=2, metric_names=["accuracy"], client_ids=[id_ for id_, _ in clients]
        )
        actor.start_training(training.training_id)
        finished = actor.wait(training.training_id, timeout=200)
        assert [end.result().rounds for end in ends] == [4, 4, 4]

        assert finished.state == training_pb2.TRAINING_STATE_COMPLETED
        assert (finished.model_version, finished.round) == (2, 3)
        assert np.array_equal(actor.download_model(finished.model_id)["weight"], np.full((4, 3), 2, np.float32))
        assert np.array_equal(actor.download_model(finished.model_id, 0)["weight"], MODEL["weight"])
        means = [(r.round, dict(r.metrics)) for r in actor.metrics(finished.model_id) if not r.reporter_id]
        assert means == [(0, {"loss": 0.5}), (1, {"accuracy": 1.0}), (2, {"loss": 0.5}), (3, {"accuracy": 2.0})]


def test_a_server_that_comes_back_goes_on(server: Server) -> None:
    actor_token, clients = users(server, 2)
    with ThreadPoolExecutor(2) as pool, fr.connect(server.address, actor_token) as actor:
        training = actor.create_training(
            MODEL, name="again", target_num_updates=3, client_ids=[id_ for id_, _ in clients]
        )
        actor.start_training(training.training_id)
        first = pool.submit(participate, server, clients[0][1])
        for event in actor.watch(training.training_id):
            if event.HasField("update_accepted"):
                break
        server.stop()
        server.start()
        second = pool.submit(participate, server, clients[1][1])
        assert actor.wait(training.training_id, timeout=200).model_version == 3
        assert (first.result().rounds, second.result().rounds) == (3, 3)


def test_an_upload_goes_on_behind_a_kill(server: Server) -> None:
    actor_token, _ = users(server, 0)
    payload = Payload.of({"weight": np.arange(2_000_000, dtype=np.float32)})
    upload_id = str(uuid.uuid4())
    half_sent, server_gone = threading.Event(), threading.Event()
    spec = training_pb2.TrainingSpec(
        name="resumed",
        target_num_updates=1,
        model_sha256=payload.sha256,
        model_size_bytes=payload.size_bytes,
    )

    def first_try() -> Iterator[training_pb2.CreateTrainingRequest]:
        yield training_pb2.CreateTrainingRequest(spec=spec, upload_id=upload_id)
        for chunk, end in payload.chunks(0):
            yield training_pb2.CreateTrainingRequest(chunk=bytes(chunk))
            if end > payload.size_bytes // 2:
                half_sent.set()
                server_gone.wait(100)
                return

    with fr.connect(server.address, actor_token) as actor, ThreadPoolExecutor(1) as pool:
        rpc = actor._rpc
        cut = pool.submit(rpc.send, rpc.trainings.CreateTraining, first_try())
        assert half_sent.wait(100)

        def committed() -> int:
            return rpc.unary(rpc.rounds.GetUpload, round_pb2.GetUploadRequest(upload_id=upload_id)).committed_size

        until(lambda: committed() > payload.size_bytes // 2)
        server.kill()
        server_gone.set()
        with pytest.raises(fr.ServerUnavailable):
            cut.result()
        server.start()

        offset = rpc.retrying(8)(committed)
        assert payload.size_bytes // 2 < offset < payload.size_bytes

        def second_try() -> Iterator[training_pb2.CreateTrainingRequest]:
            yield training_pb2.CreateTrainingRequest(spec=spec, upload_id=upload_id, offset=offset)
            for chunk, _ in payload.chunks(offset):
                yield training_pb2.CreateTrainingRequest(chunk=bytes(chunk))

        training = rpc.send(rpc.trainings.CreateTraining, second_try()).training
        stored = actor.download_model(training.model_id)["weight"]
        assert np.array_equal(stored, np.arange(2_000_000, dtype=np.float32))


def test_errors_are_typed_and_help(server: Server, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    actor_token, clients = users(server, 1)
    with fr.connect(server.address, actor_token) as actor:
        with pytest.raises(fr.TrainingNotFound, match="check the id"):
            actor.get_training(str(uuid.uuid4()))
        with pytest.raises(fr.UnknownClients) as raised:
            actor.create_training(MODEL, name="x", target_num_updates=1, client_ids=[clients[0][0], str(uuid.uuid4())])
        assert list(raised.value.field_violations) == ["client_ids"]
        with pytest.raises(fr.TensorError, match="fedround convert"):
            actor.create_training(tmp_path / "model.pt", name="x", target_num_updates=1)
        assert list(actor.trainings()) == []
    with fr.connect(server.address, "wrong") as unauthenticated, pytest.raises(fr.TokenInvalid):
        unauthenticated.myself()


def test_a_second_machine_with_the_same_token_is_told_at_once(server: Server) -> None:
    actor_token, ((client_id, token),) = users(server, 1)
    watching: list[str] = []

    def watch() -> None:
        with fr.connect(server.address, token) as client:
            watching.extend(event.WhichOneof("payload") or "" for event in client.watch(training.training_id))

    with ThreadPoolExecutor(3) as pool, fr.connect(server.address, actor_token) as actor:
        training = actor.create_training(MODEL, name="two", target_num_updates=1, client_ids=[client_id])
        observer = pool.submit(watch)
        machines = [pool.submit(participate, server, token) for _ in range(2)]
        until(lambda: any(machine.done() for machine in machines))
        (second,) = [machine for machine in machines if machine.done()]
        with pytest.raises(fr.AlreadyParticipating, match=r"another machine.*fedround user create"):
            second.result()
        actor.start_training(training.training_id)
        actor.wait(training.training_id, timeout=100)
        (first,) = [machine for machine in machines if machine is not second]
        assert first.result().rounds == 1
        observer.result()
    assert watching[-1] == "training_finished"


def test_a_program_may_take_part_once_the_connection_of_another_one_is_gone(server: Server) -> None:
    actor_token, ((client_id, token),) = users(server, 1)
    with fr.connect(server.address, actor_token) as actor, fr.connect(server.address, token) as restarted:
        training = actor.create_training(MODEL, name="again", target_num_updates=1, client_ids=[client_id])
        actor.start_training(training.training_id)
        with fr.connect(server.address, token) as killed:
            events = iter(Subscription(killed._rpc, training.training_id, session_id=killed._rpc.session_id))
            next(events)
            with pytest.raises(fr.AlreadyParticipating):
                restarted.participate(train, training_id=training.training_id)

        def succeeds() -> bool:
            with suppress(fr.AlreadyParticipating):
                return restarted.participate(train, training_id=training.training_id).rounds == 1
            return False

        until(succeeds)
