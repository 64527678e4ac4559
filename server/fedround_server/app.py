"""The composition root: makes every part once, opens them in order and closes them in reverse."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from fedround_server import logs, processes
from fedround_server.blobs import BlobFiles
from fedround_server.blobs.local import LocalBlobs
from fedround_server.blobs.objects import (
    BucketUnusable,
    BucketUrl,
    ObjectBlobs,
    check_place,
    read_place,
    write_place,
)
from fedround_server.blobs.places import BucketPlace, FolderPlace
from fedround_server.config import Settings, replica_name
from fedround_server.coordinator import Context, Coordinator
from fedround_server.coordinator.change_log import ChangeLog
from fedround_server.coordinator.context import StoreClock, SystemClock
from fedround_server.coordinator.server_status import installed_version
from fedround_server.counters import Counters
from fedround_server.domain.place import Place
from fedround_server.engine.cluster.cluster import Cluster
from fedround_server.engine.cluster.engine import RayEngine
from fedround_server.engine.executor import WorkerEngine
from fedround_server.engine.jobs import PredictionFault
from fedround_server.engine.process import allow_many_files
from fedround_server.failpoints import reached
from fedround_server.grpc_server import METHOD_NAMES, GrpcServer
from fedround_server.host import allocator
from fedround_server.host.folder import make_durable, make_narrow
from fedround_server.host.secret_file import read_id, write_secret
from fedround_server.host.sync import skip_syncs
from fedround_server.methods import check_methods
from fedround_server.metrics_port import metrics_port
from fedround_server.store import Store
from fedround_server.store.db.place import MOVED, find_database
from fedround_server.store.db.problems import explained
from fedround_server.traces import NO_TRACES, Traces
from fedround_server.wakeups import Hub

log = structlog.get_logger("fedround.app")
OBJECT_THREADS = 64


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[str]:
    """Runs a server for the duration of the block.

    A background task that fails ends the block with its error.

    Yields:
        The address that the server listens on.

    Raises:
        RuntimeError: The data directory, the database or the port is taken, or it or an architecture cannot be used.
        OSError: A file or folder of the data directory cannot be used.
    """
    check_methods(METHOD_NAMES)
    # Each connection and each upload takes a file descriptor; a soft limit of 1,024 is common.
    allow_many_files()
    if settings.no_sync:
        log.warning("no_sync: a crash of the machine loses what the server has accepted")
        skip_syncs()
    make_durable(settings.data_dir)
    with ExitStack() as stack:
        stack.enter_context(processes.lock(settings.data_dir))
        _restrict(settings.data_dir)
        database = find_database(settings.data_dir, settings.database)
        blobs = _open_blobs(settings)
        stack.callback(blobs.close)
        counters = Counters()
        # Before any gRPC object exists.
        cluster = stack.enter_context(_cluster(settings, counters))
        engine = stack.enter_context(_engine(settings, blobs.files, counters, cluster))
        await _check_architectures(engine, settings)
        traces = stack.enter_context(_traces(enabled=settings.traces))
        if isinstance(database, Path) and not (database.exists() and database.stat().st_size):
            # None of these is written before there is a database.
            _check_unused(settings.data_dir, f"{database} is missing or empty", ("admin.token", "objects/*/*"))
        with explained(database):
            place = _place(settings, blobs)
            store = stack.enter_context(
                Store(
                    database,
                    no_sync=settings.no_sync,
                    counters=counters,
                    tell=ChangeLog(traces).tell,
                    place=place,
                    journal_id=read_id(settings.data_dir / "journal.id") if settings.database else "",
                )
            )
            if not await store.users.page(None, "", 1):
                _check_unused(settings.data_dir, "the database is empty", ("objects/*/*",))
            elif settings.id_seed is not None:
                raise RuntimeError("id_seed would repeat ids of this data directory, which was used before: unset it")
        if isinstance(blobs, ObjectBlobs):
            write_place(settings.data_dir, settings.objects)
            # Threads wait for the object store, and others must not wait for them.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(OBJECT_THREADS))
        async with _background() as tasks:
            context = Context(
                store,
                blobs,
                engine,
                Hub(),
                tasks,
                settings.limits,
                architectures=settings.architectures,
                clock=StoreClock(store) if settings.database else SystemClock(),
                counters=counters,
                traces=traces,
                new_id=_new_ids(settings.id_seed),
                new_user_id=_new_user_ids(settings.id_seed),
            )
            coordinator = Coordinator(context)
            token_file = settings.data_dir / "admin.token"
            # Emptied by an operator who has lost the token, of which the server knows the hash alone.
            is_lost = token_file.exists() and not token_file.stat().st_size
            with explained(database):
                coordinator.replicas.join(replica_name(settings, settings.address[1]), installed_version())
                # The clock of the database was not known before.
                counters.start_time = context.clock.now()
                logs.name_replica(context.peers.own_name)
                await coordinator.recover()
                keep, drop = partial(write_secret, token_file), partial(token_file.unlink, missing_ok=True)
                if await coordinator.users.bootstrap(keep, drop, is_lost=is_lost):
                    lost = "the token file was empty: wrote a new token of the admin to it, and revoked the others"
                    new = "no admin had a valid token: wrote a new one to the file"
                    log.info(lost if is_lost else new, path=str(token_file))
            server = GrpcServer(settings, coordinator, counters, traces)
            tasks.create_task(allocator.give_back(server.take_load), name="give memory back")
            address = server.bind()
            tasks.create_task(server.watch_connections(), name="watch connections")
            if cluster is not None:
                tasks.create_task(cluster.watch(), name="watch Ray")
            async with metrics_port(settings.metrics_address, coordinator.status.read):
                reached("start.bound")
                await server.start()
                tasks.create_task(server.watch_lease(), name="watch the lease")
                try:
                    yield address
                finally:
                    await server.start_draining()
                    coordinator.start_draining()
                    await coordinator.replicas.start_draining()
                    await server.stop(settings.grace_seconds)
                    await coordinator.close()


def _open_blobs(settings: Settings) -> LocalBlobs | ObjectBlobs:
    """Opens the store of the files, and checks that it can be used.

    Raises:
        RuntimeError: It cannot, or the files are elsewhere.
        OSError: A folder of the data directory cannot be used.
    """
    check_place(settings.data_dir, settings.objects)
    # Processes of a cluster have other working directories.
    folder = settings.data_dir.absolute()
    if not settings.objects:
        # On PostgreSQL, there may be other replicas.
        local = LocalBlobs(folder, is_shared=bool(settings.database))
        local.check_writable()
        return local
    bucket = BucketUrl(settings.objects)
    try:
        bucket.check()
    except BucketUnusable as error:
        raise RuntimeError(f"objects: {settings.objects}: {error}; docs/objects.md says what is needed") from error
    return ObjectBlobs(folder, bucket, settings.objects_cache_bytes)


@contextmanager
def _traces(*, enabled: bool) -> Iterator[Traces]:
    """Makes traces for the duration of the block.

    Raises:
        RuntimeError: OpenTelemetry is not installed, or an environment variable of it cannot be used.
    """
    if not enabled:
        yield NO_TRACES
        return
    try:
        from fedround_server.otel import OtelTraces
    except ImportError as error:
        raise RuntimeError(
            f'traces: {error.name} is not installed: run pip install "fedround[otel]", or leave out --traces'
        ) from error
    try:
        traces = OtelTraces(installed_version())
    except ValueError as error:
        raise RuntimeError(f"traces: an OTEL_* environment variable cannot be used: {error}") from error
    with closing(traces):
        yield traces


@contextmanager
def _cluster(settings: Settings, counters: Counters) -> Iterator[Cluster | None]:
    """Opens the cluster for the duration of the block, if the settings have one.

    Raises:
        RuntimeError: Ray is not installed.
    """
    if settings.engine != "ray":
        yield None
        return
    with Cluster(
        settings.ray_address,
        settings.data_dir,
        settings.aggregation_threads,
        no_sync=settings.no_sync,
        queue=counters.queues["ray"],
    ) as cluster:
        yield cluster


def _engine(settings: Settings, files: BlobFiles, counters: Counters, cluster: Cluster | None) -> WorkerEngine:
    options: dict[str, Any] = {
        "predict_seconds": settings.predict_seconds,
        "predict_bytes": settings.predict_bytes,
        "aggregation_threads": settings.aggregation_threads,
        "no_sync": settings.no_sync,
        "counters": counters,
    }
    return WorkerEngine(files, **options) if cluster is None else RayEngine(cluster, files, **options)


def _place(settings: Settings, blobs: LocalBlobs | ObjectBlobs) -> Place | None:
    """Returns the place that the database must know: the object store or the folder; None if it lies beside it."""
    if isinstance(blobs, ObjectBlobs):
        is_known = read_place(settings.data_dir) == settings.objects
        return BucketPlace(settings.objects.rstrip("/"), blobs, is_known=is_known)
    if not settings.database:
        return None
    # The rows of the data directory's own database were copied into this one.
    is_known = (settings.data_dir / MOVED).exists()
    return FolderPlace(settings.data_dir.absolute(), blobs, is_known=is_known)


def _check_unused(data_dir: Path, problem: str, patterns: Sequence[str]) -> None:
    """Checks that a data directory goes with a new database, which would have all of its files collected.

    Raises:
        RuntimeError: It was used: something in it matches a pattern.
    """
    left = next((path for pattern in patterns for path in data_dir.glob(pattern)), None)
    if left:
        raise RuntimeError(
            f"{problem}, but the data directory was used, since {left} exists: restore the data directory and the"
            " database from a backup, set --database to the one that the server used, or choose another data directory"
            " with --data-dir"
        )


async def _check_architectures(engine: WorkerEngine, settings: Settings) -> None:
    try:
        await engine.check_architectures(settings.architectures.values())
    except PredictionFault as error:
        raise RuntimeError(f"architecture: {error.message}") from error


class _Stop(Exception):
    """Raised at the end of the block to cancel the background tasks."""


@asynccontextmanager
async def _background() -> AsyncIterator[asyncio.TaskGroup]:
    """Runs background tasks for the duration of the block; one that fails ends the block with its error."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            raise _Stop
    except* _Stop:
        pass


def _restrict(data_dir: Path) -> None:
    """Takes rights on the data directory from group and others, if these have too many."""
    try:
        if make_narrow(data_dir):
            log.warning("others had access to the data directory: only its owner has it now", path=str(data_dir))
    except OSError as error:
        log.warning("others have access to the data directory: run chmod 700", path=str(data_dir), error=str(error))


def _new_ids(seed: int | None) -> Callable[[], str]:
    """Returns a function that makes ids: random ones, or those of a seed."""
    if seed is None:
        return lambda: str(uuid.uuid4())
    return partial(_draw_id, random.Random(seed))  # noqa: S311 -- no secret: ids can be read by those who may see them


def _new_user_ids(seed: int | None) -> Callable[[str], str] | None:
    """Returns a function that makes ids of users from a seed: they do not depend on the order of concurrent calls."""
    if seed is None:
        return None
    # A name may be used again once its user is removed.
    uses: Counter[str] = Counter()

    def new_user_id(name: str) -> str:
        uses[name] += 1
        return _draw_id(random.Random(f"{seed} {uses[name]} {name}"))  # noqa: S311

    return new_user_id


def _draw_id(generator: random.Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))
