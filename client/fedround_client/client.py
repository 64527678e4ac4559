"""The client: one connection to a server, as one user."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from os import PathLike
from typing import Literal, Self, TypeAlias, get_args

import grpc

from fedround.v1.event_pb2 import COMPRESSION_UNSPECIFIED, Compression
from fedround_client.address import join_addresses
from fedround_client.attributes import own_attributes
from fedround_client.audit import AuditCalls
from fedround_client.cache import CACHE_BYTES, ModelCache
from fedround_client.channel import Target, parse_targets
from fedround_client.clock import Clock, SystemClock
from fedround_client.control import ControlCalls
from fedround_client.inference import InferenceCalls
from fedround_client.model import ModelCalls
from fedround_client.participant import Participant
from fedround_client.participation import Callbacks, Evaluate, Mode, Participation, Train
from fedround_client.relay import Relay
from fedround_client.relay_round import RelayOptions
from fedround_client.replica_channel import open_channel_to
from fedround_client.round import RoundCalls
from fedround_client.round_model import RoundModels
from fedround_client.round_runner import RoundRunner
from fedround_client.rpc import Rpc
from fedround_client.server import ServerCalls
from fedround_client.tensor_selection import PrivateTensors
from fedround_client.tensor_types import Framework
from fedround_client.traces import NO_TRACES, OtelTraces, Traces
from fedround_client.tracking import TrackingCalls
from fedround_client.training import TrainingCalls
from fedround_client.user import UserCalls

CompressionName: TypeAlias = Literal["gzip"]

DEFAULT_SERVER = "127.0.0.1:50051"


class Client(
    UserCalls,
    TrainingCalls,
    TrackingCalls,
    ControlCalls,
    ModelCalls,
    RoundCalls,
    InferenceCalls,
    AuditCalls,
    ServerCalls,
):
    """A client of a fedround server. Thread-safe. Close it, or use it in a `with` block."""

    def __init__(
        self,
        channel: grpc.Channel,
        token: str | None = None,
        *,
        address: str = "the other end of the channel",
        clock: Clock | None = None,
        compression: CompressionName | None = None,
        target: Target | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        """Takes ownership of a channel; `connect` is the usual way to create a client.

        Args:
            channel: Any grpc channel; closed with the client.
            token: The user's token.
            address: Address of the server, for error messages.
            clock: Clock for retries and timeouts; the real one by default.
            compression: As in `connect`.
            target: What the channel leads to, so that errors say why no connection is possible.
            traces: Makes spans.
        """
        self._channel = channel
        method = (
            COMPRESSION_UNSPECIFIED if compression is None else Compression.Value(f"COMPRESSION_{compression.upper()}")
        )
        self._rpc = Rpc(
            channel,
            token=token,
            address=address,
            clock=clock or SystemClock(),
            compression=method,
            target=target,
            traces=traces,
        )

    def __enter__(self) -> Self:
        """Returns the client."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes the client."""
        self.close()

    def close(self) -> None:
        """Closes the channel; calls in progress fail."""
        self._rpc.closed = True
        self._channel.close()

    def participate(
        self,
        train: Train,
        evaluate: Evaluate | None = None,
        swag: Train | None = None,
        *,
        training_id: str | None = None,
        until_finished: bool = True,
        framework: Framework | None = None,
        cache: str | PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        full_updates: bool = False,
        attributes: Mapping[str, str] | None = None,
        base: str | PathLike[str] | None = None,
        private_folder: str | PathLike[str] | None = None,
        mode: Mode = "subscribe",
    ) -> Participation:
        """Participates in trainings: runs the rounds that the server opens, across lost connections and restarts.

        Exceptions of your functions are raised unchanged, and end the participation. Before, the type and the text of
        the exception are reported to the training's actor, so that the round does not wait for you; the same happens
        if the server rejects your update. If a result is late, or a restarted program submits another one, a warning
        is logged and the participation continues with the next round.
        The call makes the C library reuse freed blocks of up to 32 MiB in this process, as glibc does by itself once
        it has seen such blocks (mallopt).

        Args:
            train: Called with the round's model (np.ndarray by name, which you may change) and the Round. Returns an
                Update, or (model, num_examples), or (model, num_examples, metrics).
            evaluate: Called with the same arguments in evaluation rounds. Returns (metrics, num_examples).
            swag: Called with the same arguments in SWAG rounds. Trains, and returns the same as train, with
                `Moments.update()` in place of the model. Without it, such a round calls train ten times (more often
                if the rank needs it), each time with the model that it returned before.
            training_id: UUID of a training; None for all in which you are registered, now or later.
            until_finished: Return after the first training that finishes; False to participate in one training after
                another until interrupted. Ignored if a training_id is given.
            framework: "torch" to get the models as torch tensors, "numpy" to get them as arrays. By default, they are
                tensors if the training was created from torch tensors and this program has imported torch, else arrays.
            cache: A folder for model files, so that a restarted program, or another participant on this machine, need
                not download them again. By default only the latest model is cached, in a temporary file; one of more
                than 16 MiB only if a later round probably needs it.
            cache_bytes: Limit on the size of all files in the folder together.
            full_updates: Send updates in full precision even if the training accepts differences.
            attributes: What the actor may know of this participant, such as {"num_examples": "6000", "device": "A100"},
                beside the versions of the SDK and of Python, and the platform. It is shown, and nothing depends on it.
                At most 17; names of 1 to 100 characters, values of at most 200.
            base: The path of a safetensors file of tensors that the server does not have, for trainings with an
                external base. The models that your functions get have these tensors, too.
            private_folder: The folder for files of tensors that only you have: private tensors, and the control
                variates of SCAFFOLD and FedDyn; by default .fedround/private in your home folder. It has to survive a
                restart.
            mode: "subscribe" to hold a stream open, by which you learn of a round at once; "poll" to ask the server
                from time to time, as often as it says, for fleets of more devices than a server can have streams.

        Returns:
            How the training ended.

        Raises:
            TrainingFailed: The training ended in ERROR.
            TrainingRemoved: The training was removed.
            RemovedFromTraining: You were removed from the training. (Without until_finished, these three are only
                logged.)
            AlreadyParticipating: Another program takes part as the same user.
            NoGrpcServer, TlsFailed, ProxyDenied: There is no way to the server that a repetition could open.
            UnsupportedRound: The training needs an evaluate function, or a newer SDK. A missing function is found
                before the first round is trained.
            FedroundError: The server answered with an error that is not transient, for example about the token, the
                update or the metrics.
            ValueError: There is no such mode.
            BaseMissing: The training has an external base, and `base` is not that file.
            TensorError: Your update cannot be written as safetensors, or a file of tensors is damaged.
            OSError: The folder of the cache cannot be created.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
        with closing(ModelCache(cache, cache_bytes)) as latest, closing(ModelCache(cache, cache_bytes)) as bases:
            callbacks = Callbacks(train, evaluate, swag)
            models = RoundModels(self._rpc, framework, latest, bases, PrivateTensors(private_folder), base)
            runner = RoundRunner(self._rpc, callbacks, framework=framework, models=models, full_updates=full_updates)
            participant = Participant(
                self._rpc,
                runner,
                training_id=training_id,
                until_finished=until_finished,
                attributes={**own_attributes(), **(attributes or {})},
                mode=mode,
            )
            return participant.run()

    def relay(self, own: Client, options: RelayOptions | None = None, *, training_id: str | None = None) -> None:
        """Takes part in trainings as a relay: with the sums of the updates of the participants of another server.

        Each round is a training of one round at that server, of which all users with the role CLIENT are participants;
        its result, the exact sum of their updates, is the update of this user. It returns when the training has ended,
        or when it is interrupted.

        Args:
            own: An actor of that server, which has no other trainings. Closed by who made it.
            options: How rounds are run.
            training_id: UUID of a training; None for all in which the user is registered, now or later, one round at a
                time.

        Raises:
            RoleRequired: `own` is neither an actor nor an admin, or this user does not have the role CLIENT.
            AlreadyParticipating: Another program takes part as the same user.
            NoGrpcServer, TlsFailed, ProxyDenied: There is no way to a server that a repetition could open.
            FedroundError: A server answered with an error that is not transient, and that is not about a training.
        """
        next(own.users("CLIENT"), None)
        runner = Relay(self._rpc, own._rpc, options or RelayOptions(), training_id)
        Participant(
            self._rpc,
            runner,
            training_id=training_id,
            until_finished=False,
            attributes={**own_attributes(), "relay": "yes"},
        ).run()


def connect(
    server: str | Sequence[str] | None = None,
    token: str | None = None,
    *,
    tls_ca: str | PathLike[str] | None = None,
    tls_cert: str | PathLike[str] | None = None,
    tls_key: str | PathLike[str] | None = None,
    insecure: bool | None = None,
    compression: CompressionName | None = None,
    traces: bool = False,
) -> Client:
    """Returns a client, which connects with the first call.

    Args:
        server: HOST:PORT; by default the environment variable FEDROUND_SERVER, or 127.0.0.1:50051. The replicas of a
            server as HOST:PORT,HOST:PORT, or as a sequence of addresses: calls go to one after the other, and past
            those that do not serve.
        token: Your token; by default the environment variable FEDROUND_TOKEN. Not needed if the server knows you by
            your certificate.
        tls_ca: PEM file of the authority that signed the server's certificate; by default the environment variable
            FEDROUND_TLS_CA, or the authorities that the machine trusts.
        tls_cert: PEM file of your certificate, if the server requires one or knows you by it; by default
            FEDROUND_TLS_CERT.
        tls_key: PEM file of its key; by default FEDROUND_TLS_KEY.
        insecure: True for plaintext, False for TLS; by default plaintext on loopback only.
        compression: "gzip" to compress model files in both directions. Worthwhile on slow connections or with many
            zeros only: it makes float32 weights smaller by a thirteenth, at about 30 MB/s.
        traces: Whether to make spans of rounds, downloads and uploads with the tracer provider that your program has
            set up for OpenTelemetry, and to tell the server of them.

    Raises:
        TokenInvalid: The token contains invalid characters.
        TypeError: The server is neither a string nor a sequence of strings.
        ValueError: An address is not HOST:PORT, the TLS options contradict each other, or the compression is unknown.
        OSError: A TLS file cannot be read.
        ImportError: Traces are wanted, and OpenTelemetry is not installed: it comes with the extra "otel".
    """
    if server is None or server == "":
        server = os.environ.get("FEDROUND_SERVER") or DEFAULT_SERVER
    address = join_addresses(server)
    if not insecure:
        tls_ca = tls_ca or os.environ.get("FEDROUND_TLS_CA")
        tls_cert = tls_cert or os.environ.get("FEDROUND_TLS_CERT")
        tls_key = tls_key or os.environ.get("FEDROUND_TLS_KEY")
    targets = parse_targets(address, tls_ca, tls_cert, tls_key, insecure)
    token = token or os.environ.get("FEDROUND_TOKEN")
    spans = OtelTraces() if traces else NO_TRACES
    # The errors of a replica have its own.
    target = targets[0] if len(targets) == 1 else None
    channel = open_channel_to(targets)
    return Client(channel, token, address=address, compression=compression, target=target, traces=spans)
