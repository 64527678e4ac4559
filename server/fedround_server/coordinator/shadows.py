"""Computes the shadow aggregations of closed rounds."""

import logging
from dataclasses import replace

from fedround_server.blobs import BlobDamaged, map_disk_full
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.results import adopt
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.domain.errors import DiskFull, Unavailable
from fedround_server.domain.shadow import ShadowResult, ShadowTask
from fedround_server.engine.executor import WorkerLost
from fedround_server.engine.jobs import AggregationFailed, AggregationJob

log = logging.getLogger(__name__)
INTERNAL = "the shadow aggregation failed; the server's log has more under the id {}"


class Shadows:
    """Aggregates the updates of a round in the other ways that its training asks for."""

    def __init__(self, context: Context, files: StoredFiles) -> None:
        self._context = context
        self._files = files

    async def compute(self, shadow: ShadowTask, job: AggregationJob) -> ShadowResult:
        """Returns what a shadow aggregation makes of a round.

        One that has no aggregate does not hurt the round: its model gets the round's model as its next version, and its
        state stays.

        Args:
            shadow: The shadow aggregation.
            job: The aggregation of the round itself.

        Raises:
            BlobDamaged: A file is damaged, as for the aggregation of the round.
            Unavailable, DiskFull, OSError: It cannot be computed now.
        """
        try:
            with map_disk_full():
                result = await self._context.engine.aggregate(
                    replace(job, aggregation=shadow.aggregation, state=shadow.state)
                )
            state = await adopt(self._context, result)
        except (BlobDamaged, Unavailable, DiskFull, OSError):
            raise
        except AggregationFailed as error:
            return ShadowResult(shadow.model_id, job.model, shadow.state, str(error))
        except Exception as error:
            if isinstance(error, WorkerLost):
                # The aggregation of the round has read all other files.
                for blob in shadow.state.slots.values():
                    await self._files.examine(blob)
            error_id = self._context.new_id()
            log.exception("a shadow aggregation for the model %s failed, id %s", shadow.model_id, error_id)
            return ShadowResult(shadow.model_id, job.model, shadow.state, INTERNAL.format(error_id))
        return ShadowResult(shadow.model_id, result.made, state)
