"""Malformed requests to a real port: each is answered, and never with INTERNAL."""

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from calls import Person, digest, model_file, new_id, read_error
from chaos.fuzz_client import METHODS
from chaos.fuzzing import Hints, message, mutate
from servers import Server
from sizes import SEED, size

INPUTS = size("FUZZ", 10_000) // 20
ROUND = 100
"""After so many requests there are new objects to aim at: some remove them."""
FILE = model_file()
SECONDS = 100
pytestmark = [pytest.mark.attack, pytest.mark.timeout(300 + INPUTS // 20)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--heartbeat-seconds", "0.1", "--max-uploads-per-user", "1000", "--max-subscriptions-per-user", "1000")
    with Server(tmp_path_factory.mktemp("fuzz") / "data", options=options) as running:
        yield running


class Aim:
    """Objects that requests may hit, and who sends them."""

    def __init__(self, server: Server, channel: grpc.Channel, rand: random.Random) -> None:
        admin = Person(channel, server.admin_token)
        # Not the first admin itself: it would rotate its own token.
        self.people = [admin.make(server.address, role) for role in ("ADMIN", "ACTOR", "CLIENT", "CLIENT")]
        _, actor, *clients = self.people
        ids = [client.user_id for client in clients]
        waiting = actor.create(client_ids=ids, target_num_updates=3, metric_names=["accuracy"])
        running = actor.create(client_ids=ids, target_num_updates=3, metric_names=["accuracy"])
        actor.start(running.training_id)
        trainings = [waiting.training_id, *[running.training_id] * 3]
        self.hints: dict[str, Any] = {
            "training_id": trainings,
            "resume_after_sequence": trainings,
            "user_id": ["", *ids],
            "client_ids": ids,
            "model_id": [running.model_id, waiting.model_id, ""],
            "page_token": [""],
            "sha256": [digest(FILE)],
            "size_bytes": [len(FILE)],
            "model_sha256": ["", digest(FILE)],
            "model_size_bytes": [0, len(FILE)],
            "upload_id": ["", *(new_id() for _ in range(3))],
            "request_id": ["", new_id()],
            "round": [0, 0, 0, 1],
            "num_examples": [1, 10],
            "offset": [0],
            "target_num_updates": [1, 2],
            "name": [new_id() for _ in range(100)],
            "description": [""],
            "architecture": [""],
            "tag": ["", "last", "mine"],
            "kind": [1, 2],
            "role": [1, 2, 3],
            "chunk": [FILE, FILE, b""],
        }

    def close(self) -> None:
        for person in self.people:
            person.channel.close()


def wire(rand: random.Random, method: MethodDescriptor, hints: Hints) -> bytes:
    """A request as bytes: whatever it says, it can be read."""
    data = message(rand, method.input_type, hints).SerializeToString()
    if rand.random() < 0.3:
        changed = mutate(rand, data, 3)
        try:
            GetMessageClass(method.input_type).FromString(changed)
        except DecodeError:
            return data
        return changed
    # Unknown fields.
    return data + (bytes([0xFA, 0x3F, 3]) + rand.randbytes(3) if rand.random() < 0.1 else b"")


def call(rand: random.Random, path: str, aim: Aim) -> Any:
    """Begins a call; its code() waits for the end."""
    method = METHODS[path]
    person = rand.choice(aim.people)
    metadata = [("authorization", f"Bearer {person.token}")]
    count = rand.choice((0, 1, 1, 1, 2, 4)) if method.client_streaming else 1
    requests = [wire(rand, method, aim.hints) for _ in range(count)]
    options = {"timeout": SECONDS, "metadata": metadata}
    if method.client_streaming:
        return person.channel.stream_unary(path).future(iter(requests), **options)
    if method.server_streaming:
        stream = person.channel.unary_stream(path)(requests[0], **options)
        if path.endswith("/Subscribe"):
            return stream
        with contextlib.suppress(grpc.RpcError):
            list(stream)
        return stream
    return person.channel.unary_unary(path).future(requests[0], **options)


def outcome(path: str, call: Any) -> str:
    if path.endswith("/Subscribe"):
        with contextlib.suppress(grpc.RpcError):
            # The first event, or heartbeat, or error.
            next(call, None)
        call.cancel()
    code = call.code()
    if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        return str(code.name)
    details = read_error(call)
    assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), details
    assert details.reason != "INTERNAL"
    return details.reason


def test_whatever_request_comes_is_answered_with_a_reason(server: Server, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    paths = sorted(METHODS)
    with grpc.insecure_channel(server.address) as channel:
        for begin in range(0, INPUTS, ROUND):
            aim = Aim(server, channel, random.Random(f"{SEED} {begin}"))
            calls = []
            for number in range(begin, min(begin + ROUND, INPUTS)):
                rand = random.Random(f"{SEED} port {number}")
                path = rand.choice(paths)
                calls.append((number, path, call(rand, path, aim)))
            for number, path, one in calls:
                try:
                    outcomes[outcome(path, one)] += 1
                except AssertionError as error:
                    raise AssertionError(f"{path}, input {number} under FEDROUND_CHAOS_SEED={SEED}: {error}") from error
            aim.close()
    assert "unexpected" not in server.log
    assert len(outcomes) > 5, outcomes
    sys.stdout.write(f"port: {outcomes.total()} inputs, {dict(outcomes.most_common())}\n")
