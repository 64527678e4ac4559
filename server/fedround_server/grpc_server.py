"""The gRPC server: its options, credentials, interceptors and services, and how it starts and stops."""

import asyncio
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs leave it out; channelz imports it, too
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from fedround.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)
from fedround_server import tls
from fedround_server.config import Settings, replica_name
from fedround_server.coordinator import Coordinator
from fedround_server.counters import Counters
from fedround_server.domain.errors import TooManyStreams, TooManyUploads
from fedround_server.host.connections import Connections
from fedround_server.interceptors.auth import AuthInterceptor
from fedround_server.interceptors.chunk_codec import ChunkCodecInterceptor
from fedround_server.interceptors.decoding import DecodingInterceptor
from fedround_server.interceptors.draining import DrainInterceptor
from fedround_server.interceptors.errors import ErrorInterceptor
from fedround_server.interceptors.headers import HeadersInterceptor
from fedround_server.interceptors.limits import LimitInterceptor
from fedround_server.interceptors.log import LogInterceptor
from fedround_server.interceptors.open_methods import OpenMethodInterceptor
from fedround_server.interceptors.rate_limits import RateInterceptor, UnauthenticatedRateInterceptor
from fedround_server.interceptors.traces import TraceInterceptor
from fedround_server.interceptors.wrapping import CombinedInterceptor, WrappingInterceptor
from fedround_server.methods import Limit
from fedround_server.services.audit_service import AuditService
from fedround_server.services.compression import Compressor
from fedround_server.services.control_service import ControlService
from fedround_server.services.descriptors import described
from fedround_server.services.health_service import HealthService
from fedround_server.services.inference_service import InferenceService
from fedround_server.services.model_service import ModelService
from fedround_server.services.round_service import RoundService
from fedround_server.services.server_service import ServerService
from fedround_server.services.training_service import TrainingService
from fedround_server.services.user_service import UserService
from fedround_server.traces import NO_TRACES, Traces

# Those of errors, which grpcurl prints if reflection describes them.
ERROR_TYPES = (error_details_pb2.DESCRIPTOR, status_pb2.DESCRIPTOR)
SERVICES = tuple(
    service
    for file in (
        user_pb2,
        training_pb2,
        control_pb2,
        round_pb2,
        model_pb2,
        inference_pb2,
        audit_pb2,
        server_pb2,
        health_pb2,
        reflection_pb2,
        channelz_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
)
METHOD_NAMES = tuple(f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods)
MAX_MESSAGE = 2 << 20
MAX_REJECTED = 1000
LEASE_INTERVAL = 1.0
"""Seconds between two looks whether a replica has its lease."""
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # The second is the size from which on gRPC always rejects; without it, it sometimes lets twice as much through.
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 8 << 10),
    # Without a bound, a stalled upload costs some 14 MB of server memory. With a window smaller than the next message,
    # the client would wait for the server between any two.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_channelz", 1),
    # gRPC would decompress messages before their sender is authenticated, and a few bytes could cost as much time as
    # megabytes. Compressed chunks are decompressed after authentication.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)


class GrpcServer:
    """A server over the use cases of a coordinator."""

    def __init__(
        self, settings: Settings, coordinator: Coordinator, counters: Counters, traces: Traces = NO_TRACES
    ) -> None:
        """Makes the server; it listens after `bind`, and serves after `start`."""
        self._settings = settings
        self._replicas = coordinator.replicas
        self._draining = DrainInterceptor(counters)
        self._health = HealthService(service.full_name for service in SERVICES)
        self._connections = Connections(
            settings.max_unauthenticated_connections_per_address,
            settings.max_unauthenticated_connections,
            MAX_REJECTED,
            _calls_received,
            settings.max_waiting_calls // 2,
        )
        counters.connections = self._connections.count
        authentication = AuthInterceptor(coordinator.access.admit, self._connections.accept)
        # With a client CA, only its holders can connect.
        is_known = authentication.is_known if settings.tls_client_ca is None else lambda _: True

        def limit(which: Limit, *limits: Any) -> LimitInterceptor:
            return LimitInterceptor(which, *limits, in_progress=counters.in_progress[which.value])

        self._errors = ErrorInterceptor(MAX_MESSAGE, coordinator.audit.denied_calls.record)
        combined: Iterable[WrappingInterceptor] = (
            LogInterceptor(counters),
            self._errors,
            OpenMethodInterceptor(settings.max_calls_per_second_per_user, self._connections),
            UnauthenticatedRateInterceptor(settings.max_calls_per_second_per_user, self._connections),
            authentication,
            *((TraceInterceptor(traces),) if traces.is_on else ()),
            RateInterceptor(settings.max_calls_per_second_per_user, settings.max_calls_per_second),
            limit(Limit.UPLOADS, TooManyUploads, settings.max_uploads_per_user, settings.max_uploads),
            limit(Limit.DOWNLOADS, TooManyStreams, settings.max_downloads_per_user),
            limit(Limit.SUBSCRIPTIONS, TooManyStreams, settings.max_subscriptions_per_user),
            self._draining,
            DecodingInterceptor(traces),
            ChunkCodecInterceptor(SERVICES, counters),
        )
        interceptors = (HeadersInterceptor(is_known, self._connections), CombinedInterceptor(combined))
        options = (
            *OPTIONS,
            # A second server on the port must fail, not share it silently; the processes of one are to share it.
            ("grpc.so_reuseport", int(settings.processes > 1)),
            ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
            # Of the calls that Python has not accepted yet, gRPC cancels without a reason some above the first number
            # and all above the second; by default 1000 and 3000.
            ("grpc.server.max_pending_requests", settings.max_waiting_calls),
            ("grpc.server.max_pending_requests_hard_limit", settings.max_waiting_calls),
            *_keepalive(settings),
        )
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        self._port = 0
        self._add_services(coordinator)

    def take_load(self) -> int:
        """Returns a number that falls when many calls have ended, also rejected ones, since it was asked last."""
        return self._draining.count() + self._connections.take_count()

    def bind(self) -> str:
        """Binds the port; returns the address that the server listens on.

        Raises:
            RuntimeError: The port is taken, or the TLS files cannot be used.
        """
        host, port = self._settings.address
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = _credentials(self._settings)
        try:
            with nullcontext() if self._settings.log_format == "json" else _without_stderr():
                if credentials is None:
                    bound = self._server.add_insecure_port(target)
                else:
                    bound = self._server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise RuntimeError(
                f"cannot listen on {target}: if another server does, choose another address with --listen"
            ) from error
        self._port = bound
        name, is_given = replica_name(self._settings, bound), bool(self._settings.replica_name)
        self._errors.replica = lambda: name if is_given or self._replicas.has_others else ""
        return f"{target.rpartition(':')[0]}:{bound}"

    async def start(self) -> None:
        """Starts serving."""
        await self._server.start()
        await self._health.report(serves=True)

    async def watch_lease(self) -> None:
        """Reports NOT_SERVING while this replica is cut off from the database, and there were others; forever."""
        was_cut_off = False
        while True:
            await asyncio.sleep(LEASE_INTERVAL)
            is_cut_off = self._replicas.is_cut_off
            if is_cut_off != was_cut_off:
                await self._health.report(serves=not is_cut_off)
                was_cut_off = is_cut_off

    async def watch_connections(self) -> None:
        """Limits the connections of unauthenticated peers, forever."""
        await self._connections.watch(self._port)

    async def start_draining(self) -> None:
        """Reports NOT_SERVING, rejects long calls from now on and ends endless ones; others go on."""
        await self._health.enter_graceful_shutdown()
        self._draining.start_draining()

    async def stop(self, grace: float) -> None:
        """Stops when the calls in progress have ended, or after so many seconds."""
        # gRPC's own grace period rejects new calls without a reason: it starts when none is in progress any more.
        await self._server.stop(await self._draining.wait_until_idle(grace))

    def _add_services(self, coordinator: Coordinator) -> None:
        # The generated functions accept servers of gRPC alone, by their types.
        server: Any = _GenericServer(self._server)
        compressor = Compressor()
        user_pb2_grpc.add_UserServiceServicer_to_server(UserService(coordinator), server)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(TrainingService(coordinator), server)
        control_pb2_grpc.add_ControlServiceServicer_to_server(ControlService(coordinator), server)
        round_pb2_grpc.add_RoundServiceServicer_to_server(RoundService(coordinator, compressor), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(coordinator, compressor), server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(coordinator), server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(coordinator), server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(ServerService(coordinator), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), server)
        names = [service.full_name for service in SERVICES]
        pool = described([*(service.file for service in SERVICES), *ERROR_TYPES])
        reflector = reflection.aio.ReflectionServicer(names, pool)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, server)


class _GenericServer:
    """Adds services so that all methods share one queue of calls that wait: gRPC keeps one for each it registers."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Does nothing."""


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discards what gRPC's C core writes to stderr: a raw line about a port that is taken, which raises an error too.

    The JSON log has that line in its own format.
    """
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _calls_received() -> int:
    """Returns how many calls gRPC has received, for the server of this process."""
    # The text that the service of channelz answers with. To make messages of it takes as long as a call of a client.
    servers = json.loads(cygrpc.channelz_get_servers(0)).get("server")
    return int(servers[0]["data"].get("callsStarted", 0)) if servers else 0


def _keepalive(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Returns the options by which a dead peer is detected within the sum of the two settings; both timeouts count."""
    timeout = round(settings.keepalive_timeout_seconds * 1000)
    return (
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", timeout),
        ("grpc.http2.ping_timeout_ms", timeout),
    )


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return tls.credentials(tls.TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca))
