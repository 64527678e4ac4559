"""Whether updates may be differences belongs to a training, also behind a restart, and before there was a choice."""

from pathlib import Path

from contracts.coordination import coordinating
from contracts.world import SPEC
from fedround_server.domain.transport import UpdatePrecision
from fedround_server.store import Store
from fedround_server.store.tables.mapping import from_spec, to_spec


async def test_a_round_taken_up_at_a_start_knows_what_its_updates_are(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await coordination.running(
            1, target_num_updates=1, update_precision=UpdatePrecision.BFLOAT16
        )
        await coordination.world.submit(training.training_id, 0, clients[0])
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
        assert [job.transport.precision for job in coordination.engine.jobs] == [UpdatePrecision.BFLOAT16]


def test_trainings_of_before_have_full_updates() -> None:
    data = from_spec(SPEC)
    assert data.pop("update_precision") == "FULL"
    assert to_spec(data) == SPEC
