"""Limits and farewells, on servers of the tests' own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from calls import TIMEOUT, Person, fails_with, model_file
from fedround.v1 import model_pb2
from servers import Server
from service.uploads import Halted, storing

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_draining_server_finishes_the_uploads_in_progress(tmp_path: Path) -> None:
    data = model_file(7)
    with Server(tmp_path / "data", options=("--grace-seconds", "3600")) as server:
        with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(1) as pool:
            person = Person(channel, server.admin_token)
            health = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=""), timeout=TIMEOUT
            )
            assert next(health).status == SERVING
            with Halted(server, storing(person), data) as halted:
                leaving = pool.submit(server.stop)
                assert next(health).status == NOT_SERVING
                assert not leaving.done()
                made = halted.finish().model
                assert leaving.result() == 0
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            request = model_pb2.DownloadModelRequest(model_id=made.model_id)
            answers = Person(channel, server.admin_token).models.DownloadModel(request)
            assert b"".join(answer.chunk for answer in answers) == data


def test_an_upload_that_outlasts_the_grace_is_cut_and_leaves_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "data", options=("--grace-seconds", "0.1")) as server:
        with grpc.insecure_channel(server.address) as channel:
            person = Person(channel, server.admin_token)
            with Halted(server, storing(person), model_file(7)) as halted:
                assert server.stop() == 0
                with pytest.raises(grpc.RpcError) as error:
                    halted.call.result()
                assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert list((server.data_dir / "tmp").iterdir()) == []


def test_all_users_together_have_so_many_uploads_at_once(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", options=("--max-uploads", "2")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        admin, data = Person(channel, server.admin_token), model_file(7)
        people = [admin.make(server.address, "ACTOR") for _ in range(3)]
        first, second, third = map(storing, people)
        with Halted(server, first, data), Halted(server, second, data) as halted:
            with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", "the server has 2 uploads", "try again") as error:
                third.send(third.spec(data), *third.chunks(data))
            assert {"QuotaFailure", "RetryInfo"} <= set(error.details.details)
            assert error.details.metadata == {"limit": "max_uploads"}
            halted.finish()
            third.send(third.spec(data), *third.chunks(data))
        for one in people:
            one.channel.close()
