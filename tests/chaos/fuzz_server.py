"""What the server reads, fed within this process."""

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from google.protobuf.message import DecodeError

from chaos.fuzzing import NUMBERS, TEXTS, Target, message, mutate, pieces
from fedround.v1 import round_pb2, training_pb2
from fedround_server.blobs.local import LocalBlobs
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.uploads.receive import Received, Uploads
from fedround_server.domain.errors import FedroundError, FieldInvalid, ModelFormat, TokenInvalid
from fedround_server.domain.model import Dtype, Manifest, TensorSpec
from fedround_server.domain.token import hash_token
from fedround_server.domain.user import Role, User
from fedround_server.engine.check import check_numbers
from fedround_server.engine.format.compare import check_same
from fedround_server.engine.format.finite import find_not_finite
from fedround_server.engine.format.gate import HeaderGate
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.jobs import CheckJob, CheckResult
from fedround_server.interceptors import auth
from fedround_server.services import pages, training_spec
from fedround_server.services.chunks import ChunkStream, incoming
from fedround_server.wakeups import Hub
from unit.safetensors_files import entry, with_header

MANIFEST = {"w": TensorSpec(Dtype.F32, (2, 3)), "count": TensorSpec(Dtype.I64, ())}
PLAIN = json.dumps({"w": entry("F32", [2, 3], 0, 24), "count": entry("I64", [], 24, 32)}).encode(), bytes(32)
SIZES = {name: dtype.itemsize for name, dtype in Dtype.__members__.items()}
HINTS: dict[str, Any] = {
    "client_ids": ["123e4567-e89b-12d3-a456-426614174000"],
    "target_num_updates": [1],
    "metric_names": ["accuracy", "loss"],
    "evaluation": [0, 1, 2],
    "min_updates": [0, 1],
    "max_num_examples": [0, 10],
    "keep_versions": [0, 1],
    "name": ["t"],
    "description": ["", "d"],
    "architecture": [""],
    "model_id": [""],
    "request_id": [""],
}
ID = "123e4567-e89b-12d3-a456-426614174000"


def a_file(rand: random.Random, manifest: Manifest | None = None) -> bytes:
    """A safetensors file, or nearly one."""
    described: dict[str, Any] = {}
    position = 0
    for number in range(rand.randint(0, 4)) if manifest is None else ():
        dtype = rand.choice((*SIZES, "F8_E4M3") if rand.random() < 0.05 else tuple(SIZES))
        shape = [rand.choice((1, 1, 2, 3, 5)) for _ in range(rand.randint(0, 3))]
        size = int(np.prod(shape, dtype=np.int64)) * SIZES.get(dtype, 1)
        described[rand.choice(("w", "b", "a.b", "a/b", "é", f"t{number}"))] = entry(
            dtype, shape, position, position + size
        )
        position += size
    for name, spec in (manifest or {}).items():
        described[name] = entry(spec.dtype.name, list(spec.shape), position, position + spec.num_bytes)
        position += spec.num_bytes
    if rand.random() < 0.3:
        described["__metadata__"] = rand.choice(({"format": "pt"}, {}, {"a": 1}, None, [], {"a": "b", "c": "\u0000"}))
    if described and rand.random() < 0.2:
        _spoil(rand, described)
    text = json.dumps(described, indent=rand.choice((None, None, 1)), ensure_ascii=rand.random() < 0.5)
    header = mutate(rand, text.encode(), rand.choice((0, 0, 1, 5))) + b" " * rand.choice((0, 0, 3))
    data = bytes(max(0, position + rand.choice((0, 0, 0, 1, -1))))
    return with_header(header, data)


def _spoil(rand: random.Random, described: dict[str, Any]) -> None:
    name = rand.choice(list(described))
    value = rand.choice((None, *NUMBERS, -1, 0.5, True, "x", [], {}, [1] * 17, [[]], 10**400))
    if isinstance(described[name], dict) and described[name] and rand.random() < 0.8:
        key = rand.choice(list(described[name]))
        if isinstance(described[name][key], list) and described[name][key] and rand.random() < 0.7:
            described[name][key][rand.randrange(len(described[name][key]))] = value
        else:
            described[name][key] = value
    else:
        described[name] = value


@contextmanager
def header_gate(folder: Path) -> Iterator[Target]:
    """Headers in any chunks: one verdict, and what is let in is what the reference reads."""

    def verdict(chunks: list[bytes], expected: Manifest | None) -> tuple[str, Any]:
        gate = HeaderGate(None if expected is None else partial(check_same, expected=expected))
        try:
            for chunk in chunks:
                gate.takes_long(chunk)
                gate.feed(chunk)
        except FedroundError as error:
            return type(error).__name__, None
        return ("layout" if gate.layout else "unfinished"), gate.layout

    def target(rand: random.Random) -> str:
        expected = MANIFEST if rand.random() < 0.3 else None
        data = mutate(rand, a_file(rand, expected if rand.random() < 0.8 else None), rand.choice((0, 0, 1, 6)))
        name, layout = verdict([data], expected)
        again = verdict(pieces(rand, data), expected)
        assert again == (name, layout), (name, again[0])
        if layout is not None and layout.size_bytes == len(data):
            described = {
                tensor: (found["dtype"], tuple(found["shape"])) for tensor, found in safetensors.deserialize(data)
            }
            assert described == {tensor: (spec.dtype.name, spec.shape) for tensor, spec in layout.manifest.items()}
        return name

    yield target


@contextmanager
def tensor_file(folder: Path) -> Iterator[Target]:
    """Whole files that passed the gate, looked through while they arrive, and mapped as the worker does."""

    def target(rand: random.Random) -> str:
        data = mutate(rand, a_file(rand), rand.choice((0, 1)))
        gate = HeaderGate()
        try:
            gate.feed(data)
        except ModelFormat:
            return "refused"
        if gate.layout is None or gate.layout.size_bytes > 1 << 20:
            return "unfinished"
        path = folder / "file"
        path.write_bytes(data[: gate.layout.size_bytes].ljust(gate.layout.size_bytes, rand.choice((b"\0", b"\xff"))))
        with TensorFile(path) as file:
            assert file.layout.manifest == gate.layout.manifest
        found = check_numbers(path).not_finite
        assert find_not_finite(gate.layout, path.read_bytes()) == found
        return "finite" if found is None else "not finite"

    yield target


@contextmanager
def page_token(folder: Path) -> Iterator[Target]:
    """Cursors of listings."""

    def target(rand: random.Random) -> str:
        kinds = [int, str] if rand.random() < 0.5 else [rand.choice((int, str)) for _ in range(rand.randint(0, 3))]
        parts = [rand.choice(NUMBERS) if kind is int else rand.choice((ID, *TEXTS)) for kind in kinds]
        if rand.random() < 0.2:
            value: Any = rand.choice((parts, *parts, {"a": parts}, [*parts, None], [True], [1.5], [[[]]], [10**300]))
            text = base64.urlsafe_b64encode(mutate(rand, json.dumps(value).encode())).decode()
        else:
            text = pages.format_token(*parts)
        text = mutate(rand, text.encode(), rand.choice((0, 0, 1, 3))).decode(errors="replace")
        try:
            found = pages.parse_token(text, *kinds)
            assert found is None or [type(part) for part in found] == kinds
            assert found is None or all(0 <= part < 1 << 62 for part in found if isinstance(part, int))
            position = pages.parse_position(text)
        except FieldInvalid:
            return "refused"
        if position is None:
            return "first page"
        assert isinstance(position[0], datetime)
        return "read"

    yield target


@contextmanager
def token(folder: Path) -> Iterator[Target]:
    """Tokens in metadata of all forms."""

    def target(rand: random.Random) -> str:
        pairs: list[tuple[str, str | bytes]] = []
        for _ in range(rand.randint(0, 3)):
            secret = mutate(rand, rand.choice((b"frt_abc", b"", b"a" * 5000)), 2)
            scheme = rand.choice((b"Bearer ", b"bearer\t", b"Basic ", b"", b"Bearer", b" "))
            value: str | bytes = mutate(rand, scheme + secret, rand.choice((0, 2)))
            if rand.random() < 0.8:
                value = value.decode("latin-1")
            pairs.append((rand.choice(("authorization", "authorization", "x-token", "authorization-bin", "te")), value))
        try:
            found = auth._token(tuple(pairs))
        except TokenInvalid:
            return "refused"
        if found is None:
            return "none"
        assert len(hash_token(found)) == 64
        return "token"

    yield target


@contextmanager
def spec(folder: Path) -> Iterator[Target]:
    """Specs of trainings, as bytes on the wire."""
    known = training_pb2.TrainingSpec.DESCRIPTOR

    def target(rand: random.Random) -> str:
        data = message(rand, known, HINTS).SerializeToString()
        try:
            read = training_pb2.TrainingSpec.FromString(mutate(rand, data, rand.choice((0, 0, 1, 3))))
        except DecodeError:
            return "no message"
        try:
            training_spec.read(read)
        except FedroundError:
            return "refused"
        return "read"

    yield target


class _Engine:
    def __init__(self, blobs: LocalBlobs) -> None:
        self._files = blobs.files

    async def check(self, job: CheckJob) -> CheckResult:
        self._files.local_path(job.file).read_bytes()
        return CheckResult()


@contextmanager
def chunks(folder: Path) -> Iterator[Target]:
    """Uploads in several tries: messages in any order, cut and resumed anywhere, with true and false declarations."""
    blobs = LocalBlobs(folder)
    ids = iter(range(1 << 60))
    parts: dict[str, Any] = {"store": None, "background": None, "blobs": blobs, "engine": _Engine(blobs), "hub": Hub()}
    context = Context(**parts, new_id=lambda: str(next(ids)))
    context = replace(context, limits=replace(context.limits, max_model_bytes=2000))
    uploads = Uploads(context)
    # They stay open for a whole run, so that they are not made anew for each input.
    with asyncio.Runner() as runner:
        yield lambda rand: runner.run(_tries(rand, uploads, blobs))


async def _tries(rand: random.Random, uploads: Uploads, blobs: LocalBlobs) -> str:
    file = with_header(*PLAIN) if rand.random() < 0.7 else a_file(rand, MANIFEST)
    file += rand.randbytes(4) if rand.random() < 0.1 else b""
    digest = hashlib.sha256(file).hexdigest()
    user = User(ID, "u", Role.CLIENT, datetime.min)
    reset = auth._caller.set(user)
    upload_id = f"{rand.getrandbits(32):08x}-e89b-12d3-a456-426614174000" if rand.random() < 0.7 else ""
    outcome = "nothing"
    try:
        for _ in range(rand.randint(1, 4)):
            before = await uploads.committed_size(ID, upload_id) if upload_id else 0
            sent = _messages(rand, file, digest, upload_id, before)
            try:
                received = await _receive(uploads, sent)
            except FedroundError as error:
                outcome = error.reason
                continue
            kept = blobs.files.local_path(received.blob).read_bytes()
            assert hashlib.sha256(kept).hexdigest() == received.blob.sha256
            assert len(kept) == received.blob.size_bytes
            assert received.manifest == MANIFEST
            assert received.blob.sha256 == sent[0].spec.sha256.lower() or not sent[0].spec.sha256
            blobs.files.local_path(received.blob).unlink()
            outcome = "blob"
    finally:
        auth._caller.reset(reset)
    return outcome


def _messages(
    rand: random.Random, file: bytes, digest: str, upload_id: str, committed: int
) -> list[round_pb2.SubmitUpdateRequest]:
    offset = rand.choice((0, committed, committed, committed, rand.randint(0, len(file) + 3)))
    wanted = round_pb2.UpdateSpec(
        sha256=rand.choice((*[digest] * 8, digest.upper(), "", "0" * 64, "z")),
        size_bytes=rand.choice((*[len(file)] * 12, len(file) + 1, len(file) - 1, 0, 2001, 2**62)),
        upload_id=upload_id,
        offset=offset,
    )
    rest = file[offset:]
    if rand.random() < 0.15:
        rest = mutate(rand, rest, 2)
    if rand.random() < 0.3:
        rest = rest[: rand.randint(0, len(rest))]
    sent = [round_pb2.SubmitUpdateRequest(chunk=piece) for piece in pieces(rand, rest)]
    head = round_pb2.SubmitUpdateRequest(spec=wanted)
    if rand.random() < 0.2:
        sent[0].spec.CopyFrom(wanted)
    else:
        sent.insert(0, head)
    if rand.random() < 0.1:
        sent.insert(rand.randint(0, len(sent)), rand.choice((head, round_pb2.SubmitUpdateRequest())))
    return sent


async def _receive(uploads: Uploads, sent: list[round_pb2.SubmitUpdateRequest]) -> Any:
    async def requests() -> AsyncIterator[round_pb2.SubmitUpdateRequest]:
        for item in sent:
            yield item

    stream = ChunkStream(requests())
    spec = (await stream.first()).spec
    declared = incoming(stream, "spec.", spec.sha256, spec.size_bytes, spec.upload_id, spec.offset)

    async def accept(received: Received) -> tuple[Received, bool]:
        return received, True

    return await uploads.receive(declared, partial(check_same, expected=MANIFEST), accept)


TARGETS: dict[str, tuple[Callable[[Path], Any], float]] = {
    "header_gate": (header_gate, 0.34),
    "tensor_file": (tensor_file, 0.05),
    "page_token": (page_token, 0.25),
    "token": (token, 0.15),
    "spec": (spec, 0.09),
    "chunks": (chunks, 0.02),
}
