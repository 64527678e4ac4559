"""Decompression bombs: messages of a few kilobytes are rejected before they are decompressed, on both sides."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import Person, fails_with, model_file
from fedround.v1 import event_pb2, model_pb2
from servers import MODULE, Server, memory
from service.uploads import storing

SIZE = 64 << 20
MOST = 16 << 20
"""What the process may grow by; a message may have 2 MiB."""

FETCH = """
import json, sys
from pathlib import Path
import fedround_client as fr

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

fr.connect("127.0.0.1:1", "token").close()  # loads all that a client needs
before = peak()
try:
    fr.connect(sys.argv[1], "token").get_model("11111111-1111-4111-8111-111111111111")
except fr.ResourceExhausted as error:
    print(json.dumps([peak() - before, str(error)]))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of its own: its peak memory covers its whole run."""
    with Server(tmp_path / "data", program=MODULE) as running:
        yield running


@pytest.mark.parametrize("way", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_server_unfolds_no_bomb(server: Server, way: grpc.Compression) -> None:
    options = [("grpc.max_send_message_length", -1)]
    token = (("authorization", f"Bearer {server.admin_token}"),)
    with grpc.insecure_channel(server.address, options=options) as channel:
        person = Person(channel, server.admin_token)
        person.create(model_file())
        before = memory(server.pid, "VmHWM")
        for method in ("UserService/GetMyself", "ModelService/GetModel"):
            call: Any = channel.unary_unary(f"/fedround.v1.{method}")
            with pytest.raises(grpc.RpcError) as answer:
                call(bytes(SIZE), metadata=token, compression=way)
            assert answer.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "is disabled" in answer.value.details()
        call = channel.stream_unary("/fedround.v1.ModelService/UploadModel")
        with pytest.raises(grpc.RpcError) as answer:
            call(iter([bytes(SIZE)]), metadata=token, compression=way)
        assert answer.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert memory(server.pid, "VmHWM") - before < MOST
        person.create(model_file())


def test_a_server_decompresses_no_chunk_beyond_its_size(server: Server) -> None:
    data = model_file()
    with grpc.insecure_channel(server.address) as channel:
        person = Person(channel, server.admin_token)
        person.create(data)
        before = memory(server.pid, "VmHWM")
        upload = storing(person)
        chunk = upload.request(chunk=gzip.compress(bytes(SIZE), 9), compression=event_pb2.COMPRESSION_GZIP)
        for _ in range(4):
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "decompresses to more than"):
                upload.send(upload.spec(data), chunk)
        assert memory(server.pid, "VmHWM") - before < MOST


def test_a_client_unfolds_no_bomb() -> None:
    def answer(request: bytes, context: Any) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        return model_pb2.GetModelResponse(model=model_pb2.Model(name="0" * SIZE)).SerializeToString()

    handlers = grpc.method_handlers_generic_handler(
        "fedround.v1.ModelService", {"GetModel": grpc.unary_unary_rpc_method_handler(answer)}
    )
    hostile = grpc.server(ThreadPoolExecutor(1), handlers=(handlers,), options=[("grpc.max_send_message_length", -1)])
    port = hostile.add_insecure_port("127.0.0.1:0")
    hostile.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", FETCH, f"127.0.0.1:{port}"], stdout=subprocess.PIPE, check=True, text=True
        )
    finally:
        hostile.stop(None).wait()
    grown, error = json.loads(done.stdout)
    assert "larger than max" in error
    assert grown < MOST
