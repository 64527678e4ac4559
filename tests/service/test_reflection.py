"""Generic clients: reflection alone is enough to call everything."""

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from calls import TIMEOUT, Person, digest, model_file, new_id
from servers import Server

BUF = shutil.which("buf") or shutil.which("buf", path=str(Path(__file__).parents[2] / ".tools/node_modules/.bin"))
SERVICES = ["UserService", "TrainingService", "RoundService", "ModelService", "InferenceService", "AuditService"]


class Refused(Exception):
    """A call that was answered with an error; details are the packed messages by their types."""

    def __init__(self, code: str, message: str, details: dict[str, bytes]) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.details = details


class BufCurl:
    """`buf curl`, which knows nothing of the protos."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, token: str, method: str, *messages: dict[str, Any], first: int = 0) -> list[dict[str, Any]]:
        """Calls a method; with `first`, only so many answers are waited for."""
        assert BUF is not None
        command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", f"x-token: {token}", "-d", "@-"]
        with subprocess.Popen(
            [*command, f"http://{self._address}/fedround.v1.{method}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write("\n".join(json.dumps(message) for message in messages))
            process.stdin.close()
            answers = list(_objects(process.stdout, first))
            if first:
                # npm's buf is a script around the program.
                os.killpg(process.pid, signal.SIGTERM)
            words = process.stderr.read()
        if process.returncode and not first:
            error = json.loads(words)
            # Base64 without its padding.
            details = {one["type"]: base64.b64decode(one["value"] + "==") for one in error["details"]}
            raise Refused(error["code"].upper(), error["message"], details)
        return answers


def _objects(lines: Any, first: int) -> Iterator[dict[str, Any]]:
    """Reads JSON objects, pretty-printed one behind the other."""
    text, found = "", 0
    for line in lines:
        text += line
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue
        text, found = "", found + 1
        if found == first:
            return


class Reflected:
    """grpcio with message types that it learns from the server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, token: str, method: str, *messages: dict[str, Any], first: int = 0) -> list[dict[str, Any]]:
        """Calls a method; with `first`, only so many answers are waited for."""
        service_name, _, name = method.partition("/")
        with grpc.insecure_channel(self._address) as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            found = pool.FindServiceByName(f"fedround.v1.{service_name}").FindMethodByName(name)
            question, answer = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
            requests = [json_format.ParseDict(message, question()) for message in messages]
            kind = ("stream_" if found.client_streaming else "unary_") + (
                "stream" if found.server_streaming else "unary"
            )
            call = getattr(channel, kind)(
                f"/fedround.v1.{service_name}/{name}",
                request_serializer=question.SerializeToString,
                response_deserializer=answer.FromString,
            )
            given = iter(requests) if found.client_streaming else requests[0]
            try:
                got = call(given, metadata=[("x-token", token)], timeout=TIMEOUT)
                answers = [got] if not found.server_streaming else []
                for response in got if found.server_streaming else []:
                    answers.append(response)
                    if len(answers) == first:
                        got.cancel()
                        break
            except grpc.RpcError as error:
                packed = GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))()
                packed.ParseFromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
                details = {one.TypeName(): one.value for one in packed.details}
                raise Refused(error.code().name, packed.message, details) from error
            return [json_format.MessageToDict(one) for one in answers]


@pytest.fixture(params=[BufCurl, Reflected])
def curl(request: pytest.FixtureRequest, server: Server) -> Any:
    if request.param is BufCurl and BUF is None:
        pytest.skip("buf is not here: `make test` installs it where npm is")
    return request.param(server.address)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_training_by_a_generic_client(curl: Any, actor: Person, clients: list[Person]) -> None:
    initial, update = model_file(), model_file(1)
    half = len(initial) // 2
    spec = {"name": "generic", "targetNumUpdates": 1, "aggregation": {"fedProx": {"mu": 0.1}}}
    made = curl(
        actor.token,
        "TrainingService/CreateTraining",
        {"spec": spec, "chunk": text(initial[:half])},
        {"chunk": text(initial[half:])},
    )[0]["training"]
    training = {"trainingId": made["trainingId"]}
    assert made["spec"]["aggregation"] == {"fedProx": {"mu": 0.1}}

    people = {"clientIds": [client.user_id for client in clients[:2]]}
    joined = curl(actor.token, "TrainingService/RegisterClients", training | people)[0]["training"]
    assert len(joined["participantIds"]) == 2
    gone = {"clientIds": [clients[1].user_id]}
    left = curl(actor.token, "TrainingService/RemoveClients", training | gone)[0]["training"]
    assert left["participantIds"] == [clients[0].user_id]
    running = curl(actor.token, "TrainingService/StartTraining", training)[0]["training"]
    assert running["state"] == "TRAINING_STATE_ONGOING"
    started = curl(clients[0].token, "RoundService/Subscribe", training, first=1)[0]
    assert started["roundStarted"]["kind"] == "ROUND_KIND_TRAIN"

    wanted = {**training, "numExamples": 3, "sha256": digest(update), "sizeBytes": len(update)}
    messages = ({"spec": wanted, "chunk": text(update[:half])}, {"chunk": text(update[half:])})
    receipt = curl(clients[0].token, "RoundService/SubmitUpdate", *messages)[0]["receipt"]
    assert receipt["sha256"] == digest(update)
    assert "trainingFinished" in curl(clients[0].token, "RoundService/Subscribe", training)[-1]

    after = curl(actor.token, "TrainingService/GetTraining", training)[0]["training"]
    assert (after["state"], after["modelVersion"]) == ("TRAINING_STATE_COMPLETED", 1)
    del after["participantIds"]
    assert curl(actor.token, "TrainingService/GetTrainings", {})[0]["trainings"] == [after]
    info, *chunks = curl(actor.token, "ModelService/DownloadModel", {"modelId": after["modelId"]})
    assert info["info"]["version"] == 1
    assert b"".join(base64.b64decode(one["chunk"]) for one in chunks) == update
    curl(actor.token, "TrainingService/RemoveTraining", training)
    with pytest.raises(Refused, match="NOT_FOUND: there is no training"):
        curl(actor.token, "TrainingService/GetTraining", training)


def test_a_generic_client_can_read_error_details(curl: Any, actor: Person) -> None:
    training_id = new_id()
    with pytest.raises(Refused, match=f"NOT_FOUND: there is no training {training_id}") as raised:
        curl(actor.token, "TrainingService/GetTraining", {"trainingId": training_id})
    packed = raised.value.details
    assert packed.keys() == {"google.rpc.ErrorInfo", "google.rpc.ResourceInfo"}
    # The server describes their types, too.
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(actor.channel))
    info, resource = (GetMessageClass(pool.FindMessageTypeByName(name)).FromString(packed[name]) for name in packed)
    assert (info.reason, info.domain, dict(info.metadata)) == ("TRAINING_NOT_FOUND", "fedround", {"id": training_id})
    assert (resource.resource_type, resource.resource_name) == ("training", training_id)


def test_every_service_is_healthy(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ["", *(f"fedround.v1.{name}" for name in SERVICES)]:
            status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        listed = stub.List(health_pb2.HealthListRequest()).statuses
        assert {"", *(f"fedround.v1.{name}" for name in SERVICES)} <= listed.keys()
        assert {one.status for one in listed.values()} == {health_pb2.HealthCheckResponse.SERVING}


def test_streams_that_are_left_open_leave_the_server_whole(server: Server) -> None:
    for _ in range(100):
        with grpc.insecure_channel(server.address) as channel:
            ProtoReflectionDescriptorDatabase(channel).get_services()
    with grpc.insecure_channel(server.address) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status


def test_channelz_is_for_admins(admin: Person, actor: Person) -> None:
    from grpc_channelz.v1 import channelz_pb2

    call = admin.channel.unary_unary(
        "/grpc.channelz.v1.Channelz/GetServers",
        request_serializer=channelz_pb2.GetServersRequest.SerializeToString,
        response_deserializer=channelz_pb2.GetServersResponse.FromString,
    )
    assert call(channelz_pb2.GetServersRequest(), metadata=[("x-token", admin.token)]).server
    with pytest.raises(grpc.RpcError) as error:
        call(channelz_pb2.GetServersRequest(), metadata=[("x-token", actor.token)])
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
