"""Whether updates may be differences belongs to a training, also behind a restart, and before there was a choice."""

import json
from dataclasses import replace
from pathlib import Path

from contracts.coordination import coordinating
from contracts.world import SPEC
from fedround_server.domain.transport import TensorPrecision, Transport, UpdatePrecision
from fedround_server.store import Store
from fedround_server.store.tables.mapping import from_spec, to_spec

RULES = (TensorPrecision("layer/*", UpdatePrecision.INT8, True, 64), TensorPrecision("*", UpdatePrecision.FULL))


async def test_a_round_taken_up_at_a_start_knows_what_its_updates_are(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, clients, training = await coordination.running(
            1, target_num_updates=1, update_precision=UpdatePrecision.BFLOAT16, tensor_precisions=RULES
        )
        await coordination.world.submit(training.training_id, 0, clients[0])
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
        assert [job.transport for job in coordination.engine.jobs] == [Transport(RULES, UpdatePrecision.BFLOAT16)]


def test_trainings_of_before_have_full_updates() -> None:
    data = from_spec(SPEC)
    assert (data.pop("update_precision"), data.pop("stochastic_rounding")) == ("FULL", False)
    assert data.pop("tensor_precisions") == []
    assert to_spec(data) == SPEC


def test_precisions_are_read_as_they_were_written() -> None:
    spec = replace(SPEC, update_precision=UpdatePrecision.INT8, stochastic_rounding=True, tensor_precisions=RULES)
    assert to_spec(json.loads(json.dumps(from_spec(spec)))) == spec
