"""Computes versions once more, from what is recorded."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace

from fedround_server.blobs import BlobDamaged
from fedround_server.coordinator.aggregation import job_of
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.counterfactuals import Counterfactuals
from fedround_server.coordinator.uploads.space import Space
from fedround_server.domain.errors import FieldInvalid, ReplayImpossible
from fedround_server.domain.model import ModelVersion
from fedround_server.engine.jobs import AggregationFailed, Replay
from fedround_server.store.queries.aggregation_task import AggregationTask


@dataclass(frozen=True, slots=True)
class ReplayedRound:
    """A round that was computed once more.

    Attributes:
        made: The version that it has made.
        replay: What was computed now.
        num_updates: How many updates were aggregated.
    """

    made: ModelVersion
    replay: Replay
    num_updates: int


class Replays:
    """Replays rounds, one at a time: the worker that does it also has other work.

    Attributes:
        counterfactuals: Replays whole trainings without some participants.
    """

    def __init__(self, context: Context, space: Space) -> None:
        self._context = context
        self._store = context.store.rounds
        self._lock = asyncio.Lock()
        self.counterfactuals = Counterfactuals(context, space, self._lock)

    async def replay(self, training_id: str, number: int, without: Collection[str], actor_id: str) -> ReplayedRound:
        """Computes the version that a round has made once more, or what it would have been without some updates.

        Args:
            training_id: The training.
            number: The round.
            without: Users whose updates are left out.
            actor_id: Who asks.

        Raises:
            FieldInvalid: No update of a user is among those of the round.
            ReplayImpossible: The round made no version, or files are not stored any more, or without these updates
                there is no result.
            FedroundError: As `RoundVerbs.find_replay` raises it.
        """
        async with self._lock:
            task = await self._store.find_replay(training_id, number, actor_id)
            aggregation = _without(task.aggregation, without)
            recorded = task.made.blob if task.made.stored else None
            try:
                found = await self._context.engine.replay(job_of(aggregation), recorded)
            except BlobDamaged as error:
                raise ReplayImpossible(f"{error}: restore it from a backup") from error
            except AggregationFailed as error:
                raise ReplayImpossible(str(error)) from error
        return ReplayedRound(task.made, found, len(aggregation.updates))


def _without(task: AggregationTask, users: Collection[str]) -> AggregationTask:
    present = {update.user_id for update in task.updates}
    if absent := sorted(set(users) - present):
        raise FieldInvalid("without_client_ids", f"the round has no update of {', '.join(absent[:20])}")
    return replace(task, updates=tuple(update for update in task.updates if update.user_id not in users))
