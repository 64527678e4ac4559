"""ServerService."""

from fedround.v1 import server_pb2, server_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.collection import SOONEST_SECONDS
from fedround_server.coordinator.server_status import ServerStatus
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """Serves those who operate the server."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._status = coordinator.status
        self._collection = coordinator.collection

    async def GetServerStatus(
        self, request: server_pb2.GetServerStatusRequest, context: Call
    ) -> server_pb2.GetServerStatusResponse:
        """Returns what the server is doing and what it uses."""
        return server_pb2.GetServerStatusResponse(status=_status(await self._status.read()))

    async def CollectFiles(
        self, request: server_pb2.CollectFilesRequest, context: Call
    ) -> server_pb2.CollectFilesResponse:
        """Removes the files that nothing needs."""
        found = await self._collection.collect(SOONEST_SECONDS)
        return server_pb2.CollectFilesResponse(num_files=found.num_files, size_bytes=found.size_bytes)


def _status(found: ServerStatus) -> server_pb2.ServerStatus:
    counters, disk, store = found.counters, found.disk, found.store
    uploads, downloads, subscriptions = (
        counters.in_progress[noun].total() for noun in ("uploads", "downloads", "subscriptions")
    )
    return server_pb2.ServerStatus(
        version=found.version,
        start_time=convert.timestamp(counters.start_time),
        current_time=convert.timestamp(found.time),
        calls=[
            server_pb2.CallCount(method=method, code=code, count=count)
            for (method, code), count in sorted(counters.calls.items())
        ],
        received_bytes=counters.received_bytes,
        sent_bytes=counters.sent_bytes,
        # A subscription is counted by its limit a moment before it is counted as a call.
        calls_in_progress=max(0, counters.calls_in_progress - subscriptions),
        uploads=uploads,
        downloads=downloads,
        subscriptions=subscriptions,
        updates_accepted=counters.updates_accepted + counters.reports_accepted,
        updates_rejected=counters.updates_rejected,
        participant_failures=counters.failures.total(),
        rounds_done=counters.aggregating.count,
        running_trainings=sum(count for state, count in store.trainings.items() if state.is_running),
        worker=server_pb2.WorkerStatus(
            jobs_waiting=sum(queue.waiting for queue in counters.queues.values()),
            jobs_running=sum(queue.running for queue in counters.queues.values()),
            jobs_done=sum(kind.count for queue in counters.queues.values() for kind in queue.jobs.values()),
            memory_bytes=sum(found.worker_memory_bytes.values()),
            crashes=sum(queue.crashes for queue in counters.queues.values()),
        ),
        memory_bytes=found.memory_bytes,
        cpu_seconds=found.cpu_seconds,
        disk=server_pb2.DiskStatus(
            total_bytes=disk.total,
            free_bytes=disk.free,
            min_free_bytes=disk.min_free,
            stored_bytes=disk.stored,
            max_stored_bytes=disk.max_stored,
            unfinished_bytes=disk.unfinished,
        ),
        database=server_pb2.DatabaseStatus(
            kind=store.kind,
            size_bytes=store.size_bytes,
            commits=counters.commits.count,
            commit_seconds=counters.commits.seconds,
        ),
        replica_id=found.replica_id or "",
        replicas=[
            server_pb2.Replica(
                replica_id=one.replica_id,
                name=one.name,
                version=one.version,
                start_time=convert.timestamp(one.start_time),
            )
            for one in found.replicas
        ],
    )
