"""Use cases by which actors control running trainings."""

from collections.abc import Awaitable, Mapping

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.round import Rounds
from fedround_server.domain.config import Changes
from fedround_server.domain.training import Stop, Training
from fedround_server.wakeups import for_actor


class Control:
    """Stops, pauses and changes trainings; each call raises the errors of the verb of its name in `ControlVerbs`."""

    def __init__(self, context: Context, rounds: Rounds) -> None:
        self._context = context
        self._store = context.store.control
        self._rounds = rounds

    async def stop(self, training_id: str, actor_id: str, when: Stop, request_id: str | None) -> Training:
        """Ends a training with the versions that it has, at once or after its round."""
        return await self._change(
            training_id, self._store.stop(training_id, actor_id, when, request_id, self._context.clock.now())
        )

    async def pause(self, training_id: str, actor_id: str, request_id: str | None) -> Training:
        """Has no further round opened."""
        return await self._change(
            training_id, self._store.pause(training_id, actor_id, request_id, self._context.clock.now())
        )

    async def resume(self, training_id: str, actor_id: str, request_id: str | None) -> Training:
        """Ends a pause, which may open a round."""
        return await self._change(
            training_id, self._store.resume(training_id, actor_id, request_id, self._context.clock.now())
        )

    async def update_config(
        self,
        training_id: str,
        actor_id: str,
        changes: Changes,
        client_changes: Mapping[str, Changes],
        request_id: str | None,
    ) -> Training:
        """Changes the configuration from the next round on."""
        now = self._context.clock.now()
        return await self._change(
            training_id, self._store.update_config(training_id, actor_id, changes, client_changes, request_id, now)
        )

    async def _change(self, training_id: str, change: Awaitable[Training]) -> Training:
        return await self._context.tasks.run_shielded(self._followed(training_id, change))

    async def _followed(self, training_id: str, change: Awaitable[Training]) -> Training:
        training = await change
        self._context.hub.notify(training_id, for_actor(training_id))
        await self._rounds.follow_up(training_id)
        return training
