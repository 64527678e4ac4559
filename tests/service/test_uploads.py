"""Files that are rejected, by each RPC that takes one: the right reason, words that help, and nothing changed."""

import io
import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from calls import MODEL, Person, digest, fails_with, model_file, new_id, new_number, until
from fedround.v1 import user_pb2
from servers import Server
from service.uploads import Upload, committed, creating, is_stored, storing, submitting
from wire import Wire

SIZE = len(model_file())
HEADER = 8 + int.from_bytes(model_file()[:8], "little")
CUTS = sorted({0, 1, 7, 8, 9, HEADER - 1, HEADER, HEADER + 1, SIZE - 1, *range(0, SIZE, 17)})
W = '"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
# Each with as many bytes of data as it describes: nothing else is wrong with the file.
HEADERS = [
    (f"{{{W},{W}}}", 8, "names something twice"),
    ('{"../w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "tensor name '../w' is not acceptable"),
    ('{"w\\u0000":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "tensor name 'w\\x00' is not acceptable"),
    ('{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "tensor name '\\ud800' is not acceptable"),
    ('{"w":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}}', 0, "no acceptable shape"),
    ('{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}', 0, "no acceptable shape"),
    ('{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', 8, "no acceptable shape"),
    ('{"w":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}', 8, "no acceptable shape"),
    ('{"w":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', 8, "no acceptable shape"),
    ('{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', 8, "needs 12 bytes, its data_offsets give 8"),
    ('{"w":{"dtype":"F4","shape":[8],"data_offsets":[0,8]}}', 8, "has the dtype 'F4'"),
    ('{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', 12, "begins at byte 4 of the data, not 0"),
    ('{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', 8, "its data_offsets give -8"),
    (f'{{{W},"v":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}', 8, "'v' begins at byte 4 of the data, not 8"),
    ('{"w":{"dtype":"F32","shape":[2]}}', 8, "needs exactly dtype, shape and data_offsets"),
    ('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}}', 8, "needs data_offsets [begin, end]"),
    ("{}", 0, "contains no tensors"),
    ('{"__metadata__":{"w":"x"}}', 0, "contains no tensors"),
    ("[]", 0, "is not a JSON object"),
    ('{"w":NaN}', 0, "is not valid JSON"),
    ("[" * 100_000, 0, "is not a JSON object"),
    ('{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}', 8, "more than 2048 characters"),
    (
        json.dumps({f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(20_001)}),
        20_001,
        "describes more than 20000 tensors",
    ),
]


class TestRefused:
    @pytest.fixture(autouse=True)
    def nothing_changes(self, server: Server, upload: Upload, data: bytes) -> Iterator[None]:
        before = upload.look()
        yield
        assert upload.look() == before
        assert not is_stored(server, data)

    def test_an_empty_stream(self, upload: Upload) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec", "the stream is empty") as error:
            upload.send()
        assert list(error.details.fields) == ["spec"]

    def test_no_spec(self, upload: Upload, data: bytes) -> None:
        for messages in (upload.chunks(data), [upload.request()]):
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec", "required in the first message"):
                upload.send(*messages)

    def test_a_spec_behind_the_file(self, upload: Upload, data: bytes) -> None:
        for size in (SIZE, 50):
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec", "required in the first message"):
                upload.send(*upload.chunks(data, size), upload.spec(data))

    def test_a_spec_again(self, upload: Upload, data: bytes) -> None:
        head, *chunks = upload.spec(data), *upload.chunks(data, 50)
        for messages in ([head, head, *chunks], [head, *chunks, head], [head, *chunks[:3], head, *chunks[3:]]):
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec", "is allowed in the first message only"):
                upload.send(*messages)

    @pytest.mark.parametrize("first", [True, False])
    def test_a_chunk_over_1_mib(self, upload: Upload, first: bool) -> None:
        large = save({"w": np.zeros(1 << 18, np.float32)})
        head = upload.spec(large)
        messages = [head, upload.request(chunk=large)]
        if first:
            head.chunk, messages = large, [head]
        words = f"chunk: has {len(large)} bytes; a message carries at most {1 << 20}"
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words):
            upload.send(*messages)

    def test_a_stream_that_ends_at_any_byte(self, upload: Upload, data: bytes) -> None:
        for cut in CUTS:
            with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE", f"ended after {cut} of {SIZE} bytes", "send it again"):
                upload.send(upload.spec(data), *upload.chunks(data[:cut]))

    @pytest.mark.parametrize("cut", [1, 8, HEADER, HEADER + 1, SIZE - 1])
    @pytest.mark.parametrize("way", ["cancel", "drop"])
    def test_a_call_that_is_given_up(self, server: Server, upload: Upload, data: bytes, cut: int, way: str) -> None:
        under_way = server.data_dir / "tmp"
        before = set(under_way.iterdir())
        over = threading.Event()

        def messages() -> Iterator[Any]:
            yield upload.spec(data)
            yield from upload.chunks(data[:cut])
            over.wait()

        def arrived() -> bool:
            with suppress(FileNotFoundError):
                return any(path.stat().st_size == cut for path in set(under_way.iterdir()) - before)
            return False

        with Wire(server.address) as wire, grpc.insecure_channel(wire.address) as channel:
            call = upload.through(Person(channel, upload.person.token)).begin(messages())
            until(arrived)
            call.cancel() if way == "cancel" else wire.cut()
            over.set()
            code = grpc.StatusCode.CANCELLED if way == "cancel" else grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.FutureCancelledError if way == "cancel" else grpc.RpcError):
                call.result()
            assert call.code() is code
        until(lambda: not arrived())

    def test_more_than_declared(self, upload: Upload, data: bytes) -> None:
        declared = upload.spec(data[:-1])
        with fails_with(
            "INVALID_ARGUMENT", "FIELD_INVALID", f"size_bytes: the file is larger than the {SIZE - 1} bytes"
        ):
            upload.send(declared, *upload.chunks(data))

    def test_a_wrong_digest(self, upload: Upload, data: bytes) -> None:
        words = f"the file's SHA-256 is {digest(data)}, declared was {'0' * 64}: send it again"
        with fails_with("DATA_LOSS", "DIGEST_MISMATCH", words):
            upload.send(upload.spec(data, **{f"{upload.prefix}sha256": "0" * 64}), *upload.chunks(data))

    @pytest.mark.parametrize("extra", [b"x", bytes(100)])
    def test_bytes_behind_the_end(self, upload: Upload, data: bytes, extra: bytes) -> None:
        with fails_with("INVALID_ARGUMENT", "MODEL_FORMAT", f"goes on behind its last tensor, at byte {SIZE}"):
            upload.send(upload.spec(data + extra), *upload.chunks(data + extra))

    def test_a_file_that_its_header_describes_as_longer(self, upload: Upload, data: bytes) -> None:
        with fails_with(
            "INVALID_ARGUMENT", "MODEL_FORMAT", f"the file is cut: its header describes more than the {SIZE - 1}"
        ):
            upload.send(upload.spec(data[:-1]), *upload.chunks(data[:-1]))

    @pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
    def test_a_pickle(self, server: Server, upload: Upload, kind: str) -> None:
        file = pickle.dumps(MODEL)
        if kind != "pickle":
            buffer = io.BytesIO()
            torch.save({"w": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=kind == "zip")
            file = buffer.getvalue()
        with fails_with("INVALID_ARGUMENT", "MODEL_FORMAT", "this is a pickle", "run `fedround convert FILE`"):
            upload.send(upload.spec(file), *upload.chunks(file))
        assert not is_stored(server, file)

    @pytest.mark.parametrize(("header", "size", "words"), HEADERS, ids=lambda value: str(value)[:50])
    def test_a_hostile_header(self, server: Server, upload: Upload, header: str, size: int, words: str) -> None:
        file = len(header).to_bytes(8, "little") + header.encode() + bytes(size)
        with fails_with("INVALID_ARGUMENT", "MODEL_FORMAT", words):
            upload.send(upload.spec(file), *upload.chunks(file))
        assert not is_stored(server, file)

    @pytest.mark.parametrize("length", [0, 1, (4 << 20) + 1, (1 << 64) - 1])
    def test_a_hostile_header_length(self, upload: Upload, length: int) -> None:
        file = length.to_bytes(8, "little") + bytes(100)
        with fails_with("INVALID_ARGUMENT", "MODEL_FORMAT", "not a safetensors file", f"would have {length} bytes"):
            upload.send(upload.spec(file), *upload.chunks(file))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, server: Server, upload: Upload, value: float) -> None:
        file = model_file(bias=np.array([0, 0, value]))
        with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "tensor 'bias' contains NaN or Inf"):
            upload.send(upload.spec(file), *upload.chunks(file))
        assert not is_stored(server, file)

    def test_too_large(self, upload: Upload, data: bytes) -> None:
        size = f"{upload.prefix}size_bytes"
        with fails_with(
            "RESOURCE_EXHAUSTED", "MODEL_TOO_LARGE", "has 4000000 bytes, the server takes 3000000"
        ) as error:
            upload.send(upload.spec(data, **{size: 4_000_000}), *upload.chunks(data))
        assert "QuotaFailure" in error.details.details
        assert error.details.metadata == {"limit": "max_model_bytes"}

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("sha256", "abc", "is not a SHA-256 of 64 hexadecimal digits"),
            ("sha256", "g" * 64, "is not a SHA-256 of 64 hexadecimal digits"),
            ("upload_id", "x", "'x' is not a UUID"),
            ("offset", 5, "requires upload_id, and must not be behind the end of the file"),
        ],
    )
    def test_a_declaration_that_makes_no_sense(
        self, upload: Upload, data: bytes, field: str, value: Any, words: str
    ) -> None:
        head = upload.spec(data)
        name = f"{upload.prefix}{field}" if field == "sha256" else field
        # CreateTraining has them beside its spec, which the training keeps.
        setattr(head if hasattr(head, name) else head.spec, name, value)
        named = f"spec.{name}" if field == "sha256" else field
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"{named}: {words}") as error:
            upload.send(head, *upload.chunks(data))
        assert list(error.details.fields) == [named]

    def test_another_position_than_where_it_stands(self, upload: Upload, data: bytes) -> None:
        head = upload.resumable(data, new_id(), 10)
        with fails_with("FAILED_PRECONDITION", "UPLOAD_OFFSET", "stands at 0 bytes, not at 10: ask GetUpload") as error:
            upload.send(head, *upload.chunks(data[10:]))
        assert error.details.metadata["committed_size"] == "0"


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("with_spec", [True, False])
def test_chunks_of_any_size_are_taken(server: Server, upload: Upload, data: bytes, size: int, with_spec: bool) -> None:
    head, *chunks = upload.spec(data), *upload.chunks(data, size)
    if with_spec:
        head.chunk = chunks.pop(0).chunk
    upload.send(head, *chunks)
    assert is_stored(server, data)


def test_a_chunk_of_1_mib_is_taken(server: Server, actor: Person, clients: list[Person]) -> None:
    initial, file = (save({"w": np.full(150_000, value, np.float64)}) for value in (0, new_number()))
    for upload in (creating(actor), storing(actor), submitting(actor, clients[0], initial)):
        chunks = list(upload.chunks(file))
        assert len(chunks[0].chunk) == 1 << 20
        upload.send(upload.spec(file), *chunks)
    assert is_stored(server, file)


def test_an_upload_whose_user_is_removed_ends(server: Server, admin: Person, upload: Upload, data: bytes) -> None:
    upload_id, over = new_id(), threading.Event()

    def messages() -> Iterator[Any]:
        yield upload.resumable(data, upload_id)
        yield from upload.chunks(data[:50])
        over.wait()

    call = upload.begin(messages())
    until(lambda: committed(upload, upload_id) == 50)
    admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=upload.person.user_id))
    with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
        call.result()
    over.set()
    assert not (server.data_dir / "uploads" / upload.person.user_id).exists()
