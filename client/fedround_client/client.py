"""The client: one connection to a server, in the name of one user."""

from __future__ import annotations

import os
from contextlib import closing
from os import PathLike
from typing import Literal, Self, TypeAlias

import grpc

from fedround.v1.event_pb2 import PACKING_UNSPECIFIED, Packing
from fedround_client.audit import AuditCalls
from fedround_client.cache import CACHE_BYTES, ModelCache
from fedround_client.channel import open_channel
from fedround_client.clock import Clock, SystemClock
from fedround_client.inference import InferenceCalls
from fedround_client.model import ModelCalls
from fedround_client.participant import Evaluate, Participant, Participation, Train
from fedround_client.round import RoundCalls
from fedround_client.rpc import Rpc
from fedround_client.tensors import Framework
from fedround_client.training import TrainingCalls
from fedround_client.user import UserCalls

CompressionName: TypeAlias = Literal["gzip"]

DEFAULT_SERVER = "127.0.0.1:50051"


class Client(UserCalls, TrainingCalls, ModelCalls, RoundCalls, InferenceCalls, AuditCalls):
    """Talks to a fedround server. Safe to use from several threads; close it, or use it in a `with` block."""

    def __init__(
        self,
        channel: grpc.Channel,
        token: str | None = None,
        *,
        address: str = "the other end of the channel",
        clock: Clock | None = None,
        compression: CompressionName | None = None,
    ) -> None:
        """Takes over a channel; `connect` is the usual way to get a client.

        Args:
            channel: Any grpc channel; closed with the client.
            token: The user's token.
            address: Where the channel leads, for error messages.
            clock: Tells the time; the real one by default.
            compression: As in `connect`.
        """
        self._channel = channel
        packing = PACKING_UNSPECIFIED if compression is None else Packing.Value(f"PACKING_{compression.upper()}")
        self._rpc = Rpc(channel, token=token, address=address, clock=clock or SystemClock(), packing=packing)

    def __enter__(self) -> Self:
        """Returns the client."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes the client."""
        self.close()

    def close(self) -> None:
        """Closes the channel; calls under way end with an error."""
        self._channel.close()

    def participate(
        self,
        train: Train,
        evaluate: Evaluate | None = None,
        swag: Train | None = None,
        *,
        training_id: str | None = None,
        until_finished: bool = True,
        framework: Framework = "numpy",
        cache: str | PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        full_updates: bool = False,
    ) -> Participation:
        """Takes part in the rounds that the server opens for you, across lost connections and server restarts.

        Errors of your functions end it and are raised as they are. A result that comes too late, or again after a
        restart of this program, is logged, and the next round is waited for. From then on the C library keeps freed
        blocks of memory of up to 32 MiB in this process, as glibc does by itself once it has seen some (mallopt).

        Args:
            train: Called with the round's model (np.ndarray by name, writable, yours) and the Round. Returns an
                Update, or (model, num_examples), or (model, num_examples, metrics).
            evaluate: Called likewise in rounds that evaluate a model. Returns (metrics, num_examples).
            swag: Called likewise in rounds that collect moments of the weights. Trains on, returns what train returns
                with `Moments.update()` in the model's place. Without it, train is called ten times in a row in such a
                round (more often if the rank wants it), each time with what it returned before.
            training_id: UUID of a training; None for all that you are registered in, now and later.
            until_finished: Return after the first training that finishes; False to serve one training after
                another until interrupted. Without effect if a training_id is given.
            framework: "torch" to get the models as tensors.
            cache: A folder that keeps the files of models, for when they are wanted again, also by a program that was
                restarted, or by another participant on this machine. By default the latest one is kept, in a temporary
                file that goes with the program.
            cache_bytes: What the folder's files may have together.
            full_updates: Send updates as they are, also where the training would take them in half precision.

        Returns:
            How the training ended.

        Raises:
            TrainingFailed: The training ended in ERROR.
            TrainingRemoved: It was removed.
            RemovedFromTraining: You were removed from it. (Without until_finished these three are logged only.)
            UnsupportedRound: A round wants an evaluation, and there is no evaluate function.
            FedroundError: The server refused something: the token, the update, the metrics.
            TensorError: Your update cannot be written as safetensors.
            OSError: The folder of the cache cannot be made.
        """
        with closing(ModelCache(cache, cache_bytes)) as models:
            participant = Participant(
                self._rpc,
                train,
                evaluate,
                swag,
                training_id=training_id,
                until_finished=until_finished,
                framework=framework,
                cache=models,
                full_updates=full_updates,
            )
            return participant.run()


def connect(
    server: str | None = None,
    token: str | None = None,
    *,
    tls_ca: str | PathLike[str] | None = None,
    tls_cert: str | PathLike[str] | None = None,
    tls_key: str | PathLike[str] | None = None,
    insecure: bool | None = None,
    compression: CompressionName | None = None,
) -> Client:
    """Makes a client; the connection itself is made with the first call.

    Args:
        server: HOST:PORT; by default the environment's FEDROUND_SERVER, or 127.0.0.1:50051.
        token: Your token; by default the environment's FEDROUND_TOKEN. None is needed where your certificate names you.
        tls_ca: PEM file of the authority that signed the server's certificate; by default the environment's
            FEDROUND_TLS_CA, or those that the machine trusts.
        tls_cert: PEM file of your certificate, if the server wants one, or knows you by it; by default
            FEDROUND_CLIENT_CERT.
        tls_key: PEM file of its key; by default FEDROUND_CLIENT_KEY.
        insecure: True for plaintext, False for TLS; by default plaintext on loopback only.
        compression: "gzip" to pack files on their way, and to ask for packed ones. It pays on slow connections only, or
            with many zeros: it saves a fourteenth of float32 weights, at some 40 MB/s.

    Raises:
        TokenInvalid: The token cannot be one.
        ValueError: The TLS options contradict each other, or the compression is unknown.
        OSError: A TLS file cannot be read.
    """
    address = server or os.environ.get("FEDROUND_SERVER") or DEFAULT_SERVER
    if not insecure:
        tls_ca = tls_ca or os.environ.get("FEDROUND_TLS_CA")
        tls_cert = tls_cert or os.environ.get("FEDROUND_CLIENT_CERT")
        tls_key = tls_key or os.environ.get("FEDROUND_CLIENT_KEY")
    channel = open_channel(address, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, insecure=insecure)
    return Client(channel, token or os.environ.get("FEDROUND_TOKEN"), address=address, compression=compression)
