"""A client process of updates.py: many users that send small updates, each in one message."""

import hashlib
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import google_crc32c
import grpc

from fedround.v1.round_pb2 import SubmitUpdateRequest, SubmitUpdateResponse, UpdateSpec
from fedround_client.channel import open_channel

METHOD = "/fedround.v1.RoundService/SubmitUpdate"
TIMEOUT = 60.0


@dataclass(frozen=True)
class Sent:
    """What a process did in a round.

    Attributes:
        begin: When the first update was sent, on the clock of time.monotonic.
        end: When the last receipt came.
        cpu: Seconds of CPU that this process used meanwhile.
        delays: Seconds from each call to its receipt.
    """

    begin: float
    end: float
    cpu: float
    delays: list[float]


class Sender:
    """The users of a process, on one server."""

    def __init__(self, address: str, tokens: Sequence[str], model: bytes, in_flight: int) -> None:
        """Opens a channel, which all users share."""
        # A stream of one message and a unary call are the same on the wire, and the latter costs the client less.
        self._submit = open_channel(address).unary_unary(
            METHOD, SubmitUpdateRequest.SerializeToString, SubmitUpdateResponse.FromString
        )
        self._metadata = [(("authorization", f"Bearer {token}"),) for token in tokens]
        self._model = model
        self._in_flight = in_flight

    @staticmethod
    def live(parent: Connection) -> None:
        """Does what the parent says."""
        senders: dict[str, Sender] = {}
        while True:
            match parent.recv():
                case "connect", name, address, tokens, model, in_flight:
                    senders[name] = Sender(address, tokens, model, in_flight)
                    parent.send("connected")
                case "send", name, training_id, number, process:
                    parent.send(senders[name].send(training_id, number, process))

    def send(self, training_id: str, number: int, process: int) -> Sent:
        """Sends an update of each user, another one than any before.

        Raises:
            grpc.RpcError: One is not accepted.
        """
        slots = threading.Semaphore(self._in_flight)
        delays: list[float] = []
        failures: list[grpc.RpcError] = []
        begin, cpu = time.monotonic(), time.process_time()
        for index, metadata in enumerate(self._metadata):
            slots.acquire()
            if failures:
                break
            start = time.monotonic()
            call = self._submit.future(
                self._request(training_id, number, process, index), metadata=metadata, timeout=TIMEOUT
            )

            def done(call: Any, start: float = start) -> None:
                delays.append(time.monotonic() - start)
                if call.code() is not grpc.StatusCode.OK:
                    failures.append(call.exception())
                slots.release()

            call.add_done_callback(done)
        for _ in range(self._in_flight):
            slots.acquire()
        if failures:
            raise failures[0]
        return Sent(begin, time.monotonic(), time.process_time() - cpu, delays)

    def _request(self, training_id: str, number: int, process: int, index: int) -> SubmitUpdateRequest:
        # The last three numbers say whose update it is: there are less than 2^24 of each.
        data = self._model[:-12] + struct.pack("<3f", number, process, index)
        spec = update_spec(data, training_id, number)
        return SubmitUpdateRequest(spec=spec, chunk=data, chunk_crc32c=google_crc32c.value(data))


def update_spec(data: bytes, training_id: str, number: int) -> UpdateSpec:
    """Returns the spec of an update for a round."""
    return UpdateSpec(
        training_id=training_id,
        round=number,
        num_examples=1,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
    )
