"""The composition root: every part made once, opened in order, closed in reverse."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import structlog
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from fedround.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)
from fedround_server import tls
from fedround_server.blobs import BlobStore, sync_folder
from fedround_server.config import Settings
from fedround_server.coordinator import Context, Coordinator, Limits
from fedround_server.domain.errors import TooManyStreams, TooManyUploads
from fedround_server.domain.quota import Quotas
from fedround_server.engine.executor import WorkerEngine
from fedround_server.engine.jobs import PredictionFailed
from fedround_server.engine.process import allow_many_files
from fedround_server.failpoints import reached
from fedround_server.host import allocator
from fedround_server.interceptors.auth import AuthInterceptor, check_permissions
from fedround_server.interceptors.chunk_codec import ChunkCodecInterceptor
from fedround_server.interceptors.draining import DrainInterceptor
from fedround_server.interceptors.errors import ErrorInterceptor
from fedround_server.interceptors.limits import DOWNLOADS, SUBSCRIPTIONS, UPLOADS, LimitInterceptor
from fedround_server.interceptors.log import LogInterceptor
from fedround_server.interceptors.rate_limits import RateInterceptor, UnauthenticatedRateInterceptor
from fedround_server.services.audit_service import AuditService
from fedround_server.services.compression import Compressor
from fedround_server.services.health_service import HealthService
from fedround_server.services.inference_service import InferenceService
from fedround_server.services.model_service import ModelService
from fedround_server.services.round_service import RoundService
from fedround_server.services.training_service import TrainingService
from fedround_server.services.user_service import UserService
from fedround_server.store import Store
from fedround_server.wakeups import Hub

log = structlog.get_logger("fedround.app")

# Importing their file puts the types of error details into the descriptor pool: grpcurl prints what reflection knows.
ERROR_DETAILS = error_details_pb2.DESCRIPTOR
SERVICES = tuple(
    service
    for file in (
        user_pb2,
        training_pb2,
        round_pb2,
        model_pb2,
        inference_pb2,
        audit_pb2,
        health_pb2,
        reflection_pb2,
        channelz_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
)
MAX_MESSAGE = 2 << 20
MAX_PENDING = 1 << 16
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # The second is where gRPC refuses always; without it, twice as much is let through now and then.
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 8 << 10),
    # Of calls that wait for Python to take them up, gRPC cancels without a word some beyond the first number and all
    # beyond the second; by default 1000 and 3000. After a cut, all participants come back at the same moment.
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
    # A second server on the port must fail, not share it silently.
    ("grpc.so_reuseport", 0),
    # Without a bound, a stalled upload costs some 14 MB of server memory. With less than the next message ahead, the
    # client would wait for the server between any two.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_channelz", 1),
    # What is not unpacked is no bomb. A few bytes of a stranger would take as much time as megabytes; chunks that are
    # packed are unpacked once it is known who sends them.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[str]:
    """Runs a server for the time of the block.

    A background task that dies ends the block with its error.

    Args:
        settings: What the operator chose.

    Yields:
        The address that it serves at, once it does.

    Raises:
        RuntimeError: The data directory or the port is taken.
    """
    check_permissions(f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods)
    # Each connection and each upload takes one; a soft limit of 1,024 is common.
    allow_many_files()
    if not settings.data_dir.exists():
        settings.data_dir.mkdir(parents=True)
        sync_folder(settings.data_dir.absolute().parent)
    with ExitStack() as stack:
        stack.enter_context(_exclusive(settings.data_dir))
        # Before any gRPC object exists.
        engine = stack.enter_context(WorkerEngine(settings.predict_seconds, settings.predict_bytes))
        await _check_architectures(engine, settings)
        store = stack.enter_context(Store(settings.database or settings.data_dir / "fedround.db"))
        async with _background() as tasks:
            token_lifetime, max_token_lifetime = settings.token_lifetimes
            limits = Limits(
                max_model_bytes=settings.max_model_bytes,
                max_unfinished_bytes_per_user=settings.max_unfinished_bytes_per_user,
                max_unfinished_bytes=settings.max_unfinished_bytes,
                min_free_bytes=settings.min_free_bytes,
                max_stored_bytes=settings.max_stored_bytes,
                quotas=Quotas(
                    settings.max_open_trainings_per_user,
                    settings.max_open_trainings,
                    settings.max_stored_bytes_per_user,
                ),
                heartbeat=timedelta(seconds=settings.heartbeat_seconds),
                token_lifetime=token_lifetime,
                max_token_lifetime=max_token_lifetime,
            )
            context = Context(
                store,
                BlobStore(settings.data_dir),
                engine,
                Hub(),
                tasks,
                limits,
                architectures=settings.architectures,
            )
            coordinator = Coordinator(context)
            await coordinator.recover()
            token_file = settings.data_dir / "admin.token"
            if await coordinator.users.bootstrap(lambda token: _write_secret(token_file, token)):
                log.info("made a token for an admin, as none could come in: it is in the file", path=str(token_file))
            leaving = DrainInterceptor()
            server, health_servicer = _make_server(settings, coordinator, leaving)
            tasks.create_task(allocator.give_back(leaving.count), name="give memory back")
            address = _bind(server, settings)
            reached("start.bound")
            await server.start()
            await _set_serving(health_servicer)
            try:
                yield address
            finally:
                await health_servicer.enter_graceful_shutdown()
                coordinator.start_draining()
                leaving.leave()
                # gRPC's own end refuses new calls without a word: it comes when nothing is under way any more.
                await server.stop(await leaving.finish(settings.grace_seconds))
                await coordinator.close()


async def _check_architectures(engine: WorkerEngine, settings: Settings) -> None:
    try:
        await engine.check_architectures(settings.architectures.values())
    except PredictionFailed as error:
        raise RuntimeError(f"architecture: {error.message}") from error


class _Stop(Exception):
    """Ends the background tasks with the block."""


@asynccontextmanager
async def _background() -> AsyncIterator[asyncio.TaskGroup]:
    """Runs background tasks for the time of a block; one that dies ends the block with its error."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            raise _Stop
    except* _Stop:
        pass


@contextmanager
def _exclusive(data_dir: Path) -> Iterator[None]:
    """Holds the data directory: two servers on one would both recover the same rounds."""
    descriptor = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RuntimeError(f"another server uses the data directory {data_dir}: choose another one") from error
    else:
        yield
    finally:
        os.close(descriptor)


def _write_secret(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)
    sync_folder(path.parent)


def _make_server(
    settings: Settings, coordinator: Coordinator, leaving: DrainInterceptor
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(
        interceptors=(
            LogInterceptor(),
            ErrorInterceptor(MAX_MESSAGE, coordinator.audit.denied_calls.record),
            UnauthenticatedRateInterceptor(settings.max_calls_per_second_per_user),
            AuthInterceptor(coordinator.access.admit),
            RateInterceptor(settings.max_calls_per_second_per_user, settings.max_calls_per_second),
            LimitInterceptor("uploads", UPLOADS, TooManyUploads, settings.max_uploads_per_user, settings.max_uploads),
            LimitInterceptor("downloads", DOWNLOADS, TooManyStreams, settings.max_downloads_per_user),
            LimitInterceptor("subscriptions", SUBSCRIPTIONS, TooManyStreams, settings.max_subscriptions_per_user),
            leaving,
            ChunkCodecInterceptor(SERVICES),
        ),
        options=(*OPTIONS, *_keepalive(settings)),
    )
    packer = Compressor()
    user_pb2_grpc.add_UserServiceServicer_to_server(UserService(coordinator), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(TrainingService(coordinator), server)
    round_pb2_grpc.add_RoundServiceServicer_to_server(RoundService(coordinator, packer), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(coordinator, packer), server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(coordinator), server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(coordinator), server)
    health_servicer = HealthService(service.full_name for service in SERVICES)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    channelz.add_channelz_servicer(server)
    reflection.enable_server_reflection([service.full_name for service in SERVICES], server)
    return server, health_servicer


def _keepalive(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Has a hung peer found within the sum of the two settings, which takes both timeouts."""
    timeout = round(settings.keepalive_timeout_seconds * 1000)
    return (
        ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", timeout),
        ("grpc.http2.ping_timeout_ms", timeout),
    )


def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    host, port = settings.address
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = _credentials(settings)
    try:
        bound = server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise RuntimeError(
            f"cannot serve at {target}: is another server there? choose another one with --listen"
        ) from error
    return f"{target.rpartition(':')[0]}:{bound}"


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return tls.credentials(tls.TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca))


async def _set_serving(servicer: health.aio.HealthServicer) -> None:
    for service in SERVICES:
        await servicer.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
