"""An engine that computes large aggregations on a cluster, and everything else in the server's own processes."""

from collections.abc import Mapping
from typing import Any

from fedround_server.blobs import BlobFiles
from fedround_server.domain.errors import WorkerKilled
from fedround_server.domain.model import VersionFile
from fedround_server.domain.swag_moments import SwagMoments
from fedround_server.engine.cluster import driver
from fedround_server.engine.cluster.cluster import Cluster
from fedround_server.engine.executor import WorkerEngine, WorkerLost
from fedround_server.engine.jobs import AggregationJob, Replay, StagedResult

LARGE_BYTES = 64 << 20
"""From how many bytes of updates on the cluster is asked; the worker computes fewer in tenths of a second."""


class RayEngine(WorkerEngine):
    """An engine whose large aggregations are divided among the tasks of a cluster, with the same bits.

    One that the driver or Ray's workers die of, again and again, is given to the worker. Its exit code tells a job that
    ends its process from one whose process was killed, and the bounds of `WorkerEngine` apply.
    """

    def __init__(self, cluster: Cluster, files: BlobFiles, *, aggregation_threads: int = 1, **options: Any) -> None:
        """Starts nothing yet; `WorkerEngine` describes the other arguments.

        Args:
            cluster: The cluster, opened.
            files: Where the files of jobs are, for this machine and for those of the cluster.
            aggregation_threads: How many threads compute an aggregation, or what of it is not divided.
            **options: Other options of `WorkerEngine`.
        """
        super().__init__(files, aggregation_threads=aggregation_threads, **options)
        self._cluster = cluster

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        """Aggregates a round."""
        if is_large(job):
            try:
                return await self._cluster.run(driver.run_aggregation, self._files, job, self._aggregation_threads)
            except (WorkerLost, WorkerKilled):
                pass
        return await super().aggregate(job)

    async def replay(self, job: AggregationJob, recorded: VersionFile | None) -> Replay:
        """Aggregates a round once more."""
        if is_large(job):
            try:
                return await self._cluster.run(driver.run_replay, self._files, job, recorded, self._aggregation_threads)
            except (WorkerLost, WorkerKilled):
                pass
        return await super().replay(job, recorded)

    def process_ids(self) -> Mapping[str, int]:
        """Returns the ids of the processes that were started."""
        driver_id = self._cluster.process_id
        return {**super().process_ids(), **({} if driver_id is None else {"ray": driver_id})}


def is_large(job: AggregationJob) -> bool:
    """Returns whether a job is worth dividing; the moments of SWAG are not divided."""
    return not isinstance(job.aggregation, SwagMoments) and sum(one.size_bytes for one in job.updates) >= LARGE_BYTES
