"""Serves metrics to Prometheus, on a port and in threads of their own.

A scrape asks the event loop for a snapshot: no call waits for more than that, and no counter needs a lock.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from fedround_server.coordinator.server_status import ServerStatus

log = structlog.get_logger("fedround.metrics")
PATH = "/metrics"
SNAPSHOT_SECONDS = 5.0
"""How long a scrape waits for the event loop and the database; Prometheus gives up after ten by default."""
CONNECTION_SECONDS = 10.0
"""How long a connection may be silent."""


@asynccontextmanager
async def metrics_port(
    address: tuple[str, int] | None, read: Callable[[], Awaitable[ServerStatus]]
) -> AsyncIterator[None]:
    """Serves metrics for the duration of the block.

    Args:
        address: Host and port; None to serve none.
        read: Reads the status; called in the event loop.

    Raises:
        RuntimeError: The server cannot listen there.
    """
    if address is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(StatusCollector(read, asyncio.get_running_loop()))
    ProcessCollector(registry=registry)
    host, port = address
    try:
        server = _HttpServer(registry, host, port)
    except OSError as error:
        raise RuntimeError(
            f"metrics_listen: cannot listen on {host}:{port} ({error.strerror}): choose another address with"
            " --metrics-listen, or leave it out"
        ) from error
    # The thread ends within so many seconds of the end of the block.
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    log.info("serving metrics", url=f"http://{shown}:{server.server_port}{PATH}")
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


class _HttpServer(ThreadingHTTPServer):
    """Answers each scrape in a thread, which does not outlive the process."""

    daemon_threads = True

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Listens; raises OSError if that is not possible."""
        self.registry = registry
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    server: _HttpServer
    timeout = CONNECTION_SECONDS

    def do_GET(self) -> None:
        """Sends the metrics, or 503 if the server did not answer in time."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, f"The metrics are at {PATH}")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception as error:
            log.warning("no metrics for a scrape", error=str(error) or type(error).__name__)
            self.send_error(503, "The server does not answer")
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: a scrape every few seconds is no news."""


class StatusCollector(Collector):
    """Makes metrics of the server's status, at each scrape."""

    def __init__(self, read: Callable[[], Awaitable[ServerStatus]], loop: asyncio.AbstractEventLoop) -> None:
        self._read = read
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics; called in the thread of a scrape.

        Raises:
            TimeoutError: The event loop, or the database, did not answer.
            RuntimeError: The server has ended.
        """
        return asyncio.run_coroutine_threadsafe(self._collect(), self._loop).result(SNAPSHOT_SECONDS)

    async def _collect(self) -> list[Metric]:
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            status = await self._read()
        return [*_calls(status), *_updates(status), *_rounds(status), *_worker(status), *_storage(status)]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedround_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"fedround_{name}", text, value=value)


def _labelled(kind: Any, name: str, text: str, labels: str, values: Iterable[tuple[tuple[str, ...], Any]]) -> Metric:
    """Returns a metric with labels, whose names are separated by spaces."""
    family: Metric = kind(f"fedround_{name}", text, labels=labels.split())
    for of, value in values:
        family.add_metric(of, *(value if isinstance(value, tuple) else (value,)))  # type: ignore[attr-defined]
    return family


def _calls(status: ServerStatus) -> Iterable[Metric]:
    counters = status.counters
    about = {"version": status.version, "database": status.store.kind}
    yield InfoMetricFamily("fedround_build", "The version of fedround, and the kind of its database.", value=about)
    yield _gauge("start_time_seconds", "When the server was started.", counters.start_time.timestamp())
    yield _gauge("replicas", "Replicas that are alive, this one included; 0 on SQLite.", len(status.replicas))
    yield _labelled(
        CounterMetricFamily, "calls", "Calls that have ended.", "method code", sorted(counters.calls.items())
    )
    yield _labelled(
        SummaryMetricFamily,
        "call_seconds",
        "Duration of calls that have ended.",
        "method",
        (((method,), (took.count, took.seconds)) for method, took in sorted(counters.call_seconds.items())),
    )
    subscriptions = counters.in_progress["subscriptions"].total()
    calls = max(0, counters.calls_in_progress - subscriptions)
    yield _gauge("calls_in_progress", "Calls in progress, without subscriptions.", calls)
    yield _gauge("uploads_in_progress", "Uploads in progress.", counters.in_progress["uploads"].total())
    yield _gauge("downloads_in_progress", "Downloads in progress.", counters.in_progress["downloads"].total())
    yield _gauge("subscriptions", "Open subscriptions.", subscriptions)
    yield _labelled(
        GaugeMetricFamily,
        "connections",
        "Open connections.",
        "state",
        (((state,), count) for state, count in counters.connections().items()),
    )
    yield _counter("received_bytes", "Bytes of chunks received in uploads, as sent.", counters.received_bytes)
    yield _counter("sent_bytes", "Bytes of files sent in downloads and events, as sent.", counters.sent_bytes)


def _updates(status: ServerStatus) -> Iterable[Metric]:
    counters = status.counters
    accepted = ((("report",), counters.reports_accepted), (("update",), counters.updates_accepted))
    rejected = (((reason,), count) for reason, count in sorted(counters.updates_rejected.items()))
    failures = (((reason,), count) for reason, count in sorted(counters.failures.items()))
    yield _labelled(CounterMetricFamily, "updates_accepted", "Updates and reports accepted.", "kind", accepted)
    yield _labelled(CounterMetricFamily, "updates_rejected", "Updates and reports rejected.", "reason", rejected)
    yield _labelled(CounterMetricFamily, "participant_failures", "Failures of participants.", "reason", failures)


def _rounds(status: ServerStatus) -> Iterable[Metric]:
    counters, store = status.counters, status.store
    phases = {"aggregating": counters.aggregating, "collecting": counters.collecting}
    yield _counter("rounds_done", "Rounds whose result was committed.", counters.aggregating.count)
    yield _labelled(
        HistogramMetricFamily,
        "round_seconds",
        "Duration of the phases of rounds whose result was committed.",
        "phase",
        (((phase,), (_buckets(took.cumulative()), took.seconds)) for phase, took in phases.items()),
    )
    yield _labelled(
        GaugeMetricFamily,
        "rounds",
        "Rounds without a result.",
        "state",
        (((state.value,), count) for state, (count, _) in store.rounds.items()),
    )
    yield _labelled(
        GaugeMetricFamily,
        "oldest_round_seconds",
        "Age of the oldest round without a result; 0 if there is none.",
        "state",
        (
            ((state.value,), 0 if oldest is None else (status.time - oldest).total_seconds())
            for state, (_, oldest) in store.rounds.items()
        ),
    )
    yield _labelled(
        GaugeMetricFamily,
        "trainings",
        "Trainings that were not removed.",
        "state",
        (((state.value,), count) for state, count in store.trainings.items()),
    )


def _buckets(cumulative: Iterable[tuple[float, int]]) -> list[tuple[str, int]]:
    return [("+Inf" if bound == float("inf") else f"{bound:.1f}", count) for bound, count in cumulative]


def _worker(status: ServerStatus) -> Iterable[Metric]:
    queues = status.counters.queues
    jobs = sorted((kind, took) for queue in queues.values() for kind, took in queue.jobs.items())
    waits = sorted((kind, seconds) for queue in queues.values() for kind, seconds in queue.waits.items())
    for name, text in (("waiting", "Jobs that wait for their process."), ("running", "Jobs that run.")):
        values = (((process,), getattr(queue, name)) for process, queue in queues.items())
        yield _labelled(GaugeMetricFamily, f"worker_jobs_{name}", text, "process", values)
    yield _labelled(
        SummaryMetricFamily,
        "worker_job_seconds",
        "Duration of jobs that have ended, without their wait.",
        "job",
        (((kind,), (took.count, took.seconds)) for kind, took in jobs),
    )
    yield _labelled(
        CounterMetricFamily,
        "worker_job_wait_seconds",
        "Time that jobs have waited for those before them.",
        "job",
        (((kind,), seconds) for kind, seconds in waits),
    )
    yield _labelled(
        CounterMetricFamily,
        "worker_crashes",
        "Worker processes that ended unexpectedly.",
        "process",
        (((process,), queue.crashes) for process, queue in queues.items()),
    )
    yield _labelled(
        GaugeMetricFamily,
        "worker_memory_bytes",
        "Resident memory of worker processes.",
        "process",
        (((process,), size) for process, size in status.worker_memory_bytes.items()),
    )


def _storage(status: ServerStatus) -> Iterable[Metric]:
    disk, commits = status.disk, status.counters.commits
    yield _gauge("disk_size_bytes", "Size of the disk of the data directory.", disk.total)
    yield _gauge("disk_free_bytes", "Free space on it.", disk.free)
    yield _gauge("disk_min_free_bytes", "Free space that new models leave (min_free_bytes).", disk.min_free)
    yield _gauge("stored_bytes", "Size of all stored files.", disk.stored)
    yield _gauge("max_stored_bytes", "Largest size of all stored files (max_stored_bytes).", disk.max_stored)
    yield _gauge("unfinished_upload_bytes", "Size of unfinished uploads.", disk.unfinished)
    yield _gauge("database_size_bytes", "Size of the database.", status.store.size_bytes)
    yield SummaryMetricFamily(
        "fedround_database_commit_seconds",
        "Duration of transactions that were committed.",
        count_value=commits.count,
        sum_value=commits.seconds,
    )
