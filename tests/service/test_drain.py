"""What a server still does while it drains, and what it leaves to the next one."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import fedround_client as fr
from calls import MODEL, TIMEOUT, Person, digest, fails_with, kinds, model_file, new_id, until
from fedround.v1 import control_pb2, round_pb2, training_pb2
from servers import Server, descendants
from service.uploads import Halted, creating, storing, submitting

PATIENT = ("--grace-seconds", "3600")


@contextmanager
def admin_of(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def signal_and_see(server: Server, person: Person) -> None:
    """Sends a server SIGTERM, and waits until it reports that it drains."""
    stub = health_pb2_grpc.HealthStub(person.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    os.kill(server.pid, signal.SIGTERM)
    assert [answer.status for answer in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def state_of_round(actor: Person, training_id: str) -> round_pb2.RoundState:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id)).round.state


def test_draining_rejects_long_calls_and_finishes_those_in_progress(tmp_path: Path) -> None:
    data, later = model_file(7), model_file(8)
    with Server(tmp_path / "data", options=PATIENT) as server:
        with admin_of(server) as admin, admin_of(server) as newcomer:
            client = admin.make(server.address, "CLIENT")
            waiting = admin.create(client_ids=[client.user_id])
            subscriptions = [client.subscribe(), admin.subscribe(waiting.training_id)]
            with Halted(server, storing(admin), data) as halted, ThreadPoolExecutor(1) as pool:
                signal_and_see(server, admin)
                for events in subscriptions:
                    assert kinds(list(events)) == ["going_away"]
                # Over old connections and new ones.
                for person in (admin, newcomer):
                    for upload in (storing(person), creating(person)):
                        with fails_with("UNAVAILABLE", "SERVER_LEAVING", "try again when it is back") as error:
                            upload.send(upload.spec(later), *upload.chunks(later))
                        assert "RetryInfo" in error.details.details
                    request = training_pb2.StartTrainingRequest(training_id=waiting.training_id)
                    with fails_with("UNAVAILABLE", "SERVER_LEAVING", "try again when it is back"):
                        person.trainings.StartTraining(request, timeout=TIMEOUT)
                    assert person.get(waiting.training_id) == waiting
                assert kinds(list(newcomer.subscribe())) == ["going_away"]
                ended = pool.submit(server.wait)
                assert not ended.done()
                made = halted.finish().model
                assert ended.result() == 0
            client.channel.close()
        server.start()
        with admin_of(server) as admin:
            (model, _) = storing(admin).look()[1]
            assert (model.model_id, model.sha256) == (made.model_id, digest(data))
            assert admin.get(waiting.training_id) == waiting


def test_no_round_opens_while_a_server_drains(tmp_path: Path) -> None:
    with Server(tmp_path / "data", options=PATIENT) as server:
        with admin_of(server) as admin:
            client = admin.make(server.address, "CLIENT")
            spec = {"client_ids": [client.user_id], "target_num_updates": 2}
            # One whose next round opens once it is resumed, and one whose round opens once the client is connected.
            paused = admin.start(admin.create(**spec).training_id).training_id
            admin.control.PauseTraining(control_pb2.PauseTrainingRequest(training_id=paused))
            client.submit(paused, model_file(1))
            until(lambda: admin.get(paused).model_version == 1)
            cohort = training_pb2.Cohort(min_available=1)
            pending = admin.start(admin.create(**spec, cohort=cohort).training_id).training_id
            resume = control_pb2.ResumeTrainingRequest(training_id=paused, request_id=new_id())
            with Halted(server, storing(admin), model_file(7)) as halted:
                signal_and_see(server, admin)
                before = admin.get(paused)
                with fails_with("UNAVAILABLE", "SERVER_LEAVING", "try again when it is back") as error:
                    admin.control.ResumeTraining(resume)
                assert "RetryInfo" in error.details.details
                assert kinds(list(client.subscribe(pending))) == ["training_started", "going_away"]
                assert admin.get(paused) == before
                assert state_of_round(admin, pending) == round_pb2.ROUND_STATE_PENDING
                halted.finish()
            assert server.wait() == 0
            client.channel.close()
        server.start()
        with admin_of(server) as admin, grpc.insecure_channel(server.address) as channel:
            assert state_of_round(admin, pending) == round_pb2.ROUND_STATE_PENDING
            resumed = admin.control.ResumeTraining(resume).training
            assert (resumed.paused, resumed.round) == (False, 1)
            events = Person(channel, client.token).subscribe(pending)
            assert kinds(events.next(2)) == ["training_started", "round_started"]


def test_an_update_that_is_cut_is_resumed_after_the_restart(tmp_path: Path) -> None:
    data, upload_id = model_file(1), new_id()
    with Server(tmp_path / "data", options=("--grace-seconds", "1")) as server:
        with admin_of(server) as admin:
            actor, client = (admin.make(server.address, role) for role in ("ACTOR", "CLIENT"))
            upload = submitting(actor, client, model_file())

            def committed() -> int:
                asked = round_pb2.GetUploadRequest(upload_id=upload_id)
                return client.rounds.GetUpload(asked, timeout=TIMEOUT, wait_for_ready=True).committed_size

            resumable = upload.spec(data, upload_id=upload_id)
            with Halted(server, upload, data, resumable) as halted:
                until(lambda: committed() == len(data) // 2)
                signal_and_see(server, admin)
                with pytest.raises(grpc.RpcError):
                    halted.call.result()
                assert server.wait() == 0
        server.start()
        at = committed()
        assert at == len(data) // 2
        receipt = upload.send(upload.spec(data, upload_id=upload_id, offset=at), *upload.chunks(data[at:])).receipt
        assert receipt.sha256 == digest(data)
        for person in (actor, client):
            person.channel.close()


def test_the_sdk_waits_for_the_server_to_come_back(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", options=PATIENT) as server,
        admin_of(server) as admin,
        fr.connect(server.address, server.admin_token) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        with Halted(server, storing(admin), model_file(7)) as halted:
            signal_and_see(server, admin)
            made = pool.submit(client.create_training, MODEL, name="patient", target_num_updates=1)
            until(lambda: "code=UNAVAILABLE" in server.log)
            assert not made.done()
            halted.finish()
        assert server.wait() == 0
        server.start()
        assert client.get_training(made.result().training_id).spec.name == "patient"


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    with Server(tmp_path / "data", options=PATIENT) as server:
        with admin_of(server) as admin, Halted(server, storing(admin), model_file(7)):
            children = descendants(server.pid)
            assert children
            signal_and_see(server, admin)
            os.kill(server.pid, signal.SIGTERM)
            assert server.wait() == -signal.SIGKILL
            until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
        server.start()
