"""Takes over what the engine has made."""

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import in_thread
from fedround_server.domain.aggregation import AggregationState
from fedround_server.engine.jobs import StagedResult


async def commit_files(context: Context, result: StagedResult) -> AggregationState:
    """Makes the files of a result blobs, durably, and returns the state among them.

    The caller keeps or releases them.

    Raises:
        DiskFull: There is no room for one.
    """
    for staged in (result, *result.slots.values()):
        await in_thread(context.blobs.commit, staged)
    return AggregationState({slot: staged.blob for slot, staged in result.slots.items()}, result.steps)


async def adopt(context: Context, result: StagedResult) -> AggregationState:
    """Makes the files of a result blobs like `commit_files`; the collection removes them if no row refers to them.

    Raises:
        DiskFull: There is no room for one.
    """
    state = await commit_files(context, result)
    for staged in (result, *result.slots.values()):
        context.blobs.keep(staged.blob)
    return state
