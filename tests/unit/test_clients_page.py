"""The bytes in docs/clients.md are those that the SDK would send, and its reasons exist."""

import hashlib
import re
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from safetensors.numpy import save

from fedround.v1.event_pb2 import Event, RoundStarted
from fedround.v1.round_pb2 import SubmitUpdateRequest, UpdateSpec
from fedround_client.channel import MESSAGE_LIMIT
from fedround_client.errors import reason
from fedround_client.payload import CHUNK, Payload
from fedround_server.domain.limits import Limits
from fedround_server.engine.format.gate import MAX_HEADER

PAGE = (Path(__file__).parents[2] / "docs/clients.md").read_text(encoding="utf-8")
FILE = save({"w": np.float32([1, 2])})
SPEC = UpdateSpec(
    training_id="00000000-0000-4000-8000-000000000001",
    num_examples=100,
    sha256=hashlib.sha256(FILE).hexdigest(),
    size_bytes=len(FILE),
    upload_id="00000000-0000-4000-8000-000000000002",
)


def xxd(data: bytes) -> str:
    """Returns what the command `xxd` prints, without spaces at the ends of lines."""
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        pairs = " ".join(part[at : at + 2].hex() for at in range(0, len(part), 2))
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}: {pairs:39}  {text}".rstrip())
    return "\n".join(lines)


def frame(message: SubmitUpdateRequest) -> bytes:
    """Returns a message as gRPC sends it."""
    data = message.SerializeToString(deterministic=True)
    return b"\0" + len(data).to_bytes(4, "big") + data


CRC = google_crc32c.value(FILE)
BYTES = {
    "file": xxd(FILE),
    "checksums": f"SHA-256 of the file    {SPEC.sha256}\nCRC-32C of the chunk   {CRC:08x}, that is {CRC}",
    "spec": xxd(frame(SubmitUpdateRequest(spec=SPEC))),
    "chunk": xxd(frame(SubmitUpdateRequest(chunk=FILE, chunk_crc32c=CRC))),
}


@pytest.mark.parametrize("name", BYTES)
def test_the_bytes_on_the_page_are_right(name: str) -> None:
    shown = re.search(rf"<!-- bytes: {name} -->\n\n(.*?)\n\n<!-- end -->", PAGE, re.DOTALL)
    assert shown
    assert [line.removeprefix("    ") for line in shown[1].splitlines()] == BYTES[name].splitlines()


def test_the_file_on_the_page_is_what_the_sdk_writes() -> None:
    assert b"".join(chunk for chunk, _ in Payload.of({"w": np.float32([1, 2])}).chunks(0)) == FILE


def test_the_reasons_on_the_page_exist() -> None:
    # What participants report is their own.
    reported = {"UNSUPPORTED_ROUND", "TRAIN_FAILED", "EVALUATE_FAILED"}
    known = set(re.findall(r'reason="(\w+)"', Path(reason.__file__).read_text(encoding="utf-8")))
    table = PAGE.partition("## Errors and retries")[2]
    assert len(set(re.findall(r"`([A-Z]+_[A-Z_]+)`", table)) & known) > 10
    options = {"COMPRESSION_GZIP", "TRAINING_ROLE_CLIENT"}
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", PAGE)) - known - reported - options == set()


def test_every_event_for_participants_is_on_the_page() -> None:
    for_actors = {"update_accepted", "participant_failed", "config_updated"}
    told = {"training_paused", "training_resumed", "stop_requested"}  # a participant does nothing
    payloads = {field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert payloads - for_actors - told - set(re.findall(r"`(\w+)`", PAGE)) == set()


def test_every_option_of_a_round_is_on_the_page() -> None:
    named = set(re.findall(r"`(?:aggregation\.)?(\w+)`", PAGE)) | set(re.findall(r"`(\w+)` [A-Z>]", PAGE))
    known = {"swag", "attempt", "round", "aggregation"}
    assert set(RoundStarted.DESCRIPTOR.fields_by_name) - named - known == set()


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    assert (CHUNK, MESSAGE_LIMIT, MAX_HEADER) == (786_432, 2 << 20, 4 << 20)
    assert all(text in PAGE for text in ("786,432\nbytes", "2 MiB", "at most 4 MiB"))
    assert Limits().heartbeat.total_seconds() == 20
