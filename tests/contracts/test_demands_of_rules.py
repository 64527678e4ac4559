"""What rules of aggregation need: of updates, how many of them, and of whom; on both databases."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from contracts.audits import check
from contracts.test_cohort import members
from contracts.test_failures import current, ending, fail, log
from contracts.world import SPEC, World, new_id
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.fed_nova import FedNova
from fedround_server.aggregators.fl_trust import FLTrust
from fedround_server.aggregators.krum import Krum
from fedround_server.aggregators.mixing import Bucketing
from fedround_server.aggregators.q_fed_avg import QFedAvg
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import (
    CohortImpossible,
    FieldInvalid,
    NoParticipants,
    UnknownClients,
    UpdateExists,
)
from fedround_server.domain.event import RoundStarted
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.rounds.round import RoundState, WaitRule
from fedround_server.domain.training import Training
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.store import Store

KRUM = Aggregation(Krum(f=1))
"""It needs five updates."""
RETRY = RoundPolicy(deadline=timedelta(hours=1), on_missed=OnMissed.RETRY, max_retries=1)


async def started(world: World, aggregation: Aggregation, clients: int, **spec: Any) -> tuple[str, list[str], str]:
    actor, users, training = await world.running(clients, aggregation=aggregation, **spec)
    return actor, users, training.training_id


class TestInputs:
    async def test_steps_are_kept_for_the_rule_that_needs_them(self, store: Store, world: World) -> None:
        _, users, training_id = await started(world, Aggregation(FedNova()), 2)
        for lacking in (None, 0, 2**53 + 1):
            with pytest.raises(FieldInvalid, match=r"spec\.local_steps.*fed_nova needs the number of local"):
                await world.submit(training_id, 0, users[0], local_steps=lacking)
        assert (await current(store, training_id)).arrived == 0
        for user, steps in zip(users, (7, 2**53), strict=True):
            await world.submit(training_id, 0, user, local_steps=steps, initial_loss=1.0)
        task = await store.rounds.find_aggregation(training_id)
        assert task is not None
        assert [(one.local_steps, one.initial_loss) for one in task.updates] == [(7, None), (2**53, None)]

    async def test_losses_are_kept_for_the_rule_that_needs_them(self, store: Store, world: World) -> None:
        _, users, training_id = await started(world, Aggregation(QFedAvg()), 3)
        for lacking in (None, -0.5, float("nan"), float("inf")):
            with pytest.raises(FieldInvalid, match=r"spec\.initial_loss.*q_fed_avg needs the loss"):
                await world.submit(training_id, 0, users[0], initial_loss=lacking)
        for user, loss in zip(users, (0.0, 0.1, 1e300), strict=True):
            await world.submit(training_id, 0, user, initial_loss=loss, local_steps=3)
        task = await store.rounds.find_aggregation(training_id)
        assert task is not None
        assert [(one.local_steps, one.initial_loss) for one in task.updates] == [(None, 0), (None, 0.1), (None, 1e300)]

    async def test_nothing_is_kept_for_other_rules_and_without_examples(self, store: Store, world: World) -> None:
        for rule, num_examples in ((FedAvg(), 10), (FedNova(), 0), (QFedAvg(), 0)):
            _, users, training_id = await started(world, Aggregation(rule), 1)
            given = {} if num_examples == 0 else {"local_steps": 3, "initial_loss": 0.5}
            await world.submit(training_id, 0, users[0], "u", num_examples, **given)
            task = await store.rounds.find_aggregation(training_id)
            assert task is not None
            assert [(one.local_steps, one.initial_loss) for one in task.updates] == [(None, None)]

    async def test_a_repeated_update_is_the_same_with_the_same_steps_only(self, store: Store, world: World) -> None:
        _, users, training_id = await started(world, Aggregation(FedNova()), 2)
        first, _ = await world.submit(training_id, 0, users[0], local_steps=5)
        again, _ = await world.submit(training_id, 0, users[0], local_steps=5, initial_loss=3.0)
        assert again == first
        for steps in (6, None):
            with pytest.raises(UpdateExists, match="different: local_steps"):
                await world.submit(training_id, 0, users[0], local_steps=steps)
        await check(store)

    async def test_moments_need_none(self, store: Store, world: World) -> None:
        _, users, training_id = await started(
            world, Aggregation(FedNova()), 1, target_num_updates=1, uncertainty=Swag(samples=3)
        )
        await world.submit(training_id, 0, users[0], local_steps=5)
        await world.commit(training_id)
        assert (await current(store, training_id)).kind.name == "SWAG"
        await world.submit(training_id, 1, users[0])
        assert await world.commit(training_id)


class TestTooFew:
    async def test_a_training_does_not_start_with_them(self, store: Store, world: World) -> None:
        actor, users = await world.user(Role.ACTOR), await world.users(5)
        training = await world.training(actor, users[:4], aggregation=KRUM)
        words = r"krum\(f=1\) needs 5 registered participants, and there are 4: register clients first"
        with pytest.raises(NoParticipants, match=words):
            await store.trainings.start(training.training_id, actor, None, world.now)
        await store.trainings.register(training.training_id, actor, users[4:], world.now)
        await store.trainings.start(training.training_id, actor, None, world.now)
        assert (await current(store, training.training_id)).members == 5

    async def test_mixing_counts(self, world: World) -> None:
        mixed = Aggregation(Krum(f=1), mixing=Bucketing(size=2))
        with pytest.raises(NoParticipants, match=r"krum\(f=1\) after bucketing\(size=2, seed=0\) needs 9 .*are 8"):
            await started(world, mixed, 8)
        await started(world, mixed, 9)

    @pytest.mark.parametrize("cohort", [None, Cohort(size=5)])
    async def test_a_round_is_pending_until_there_are_enough(
        self, store: Store, world: World, cohort: Cohort | None
    ) -> None:
        actor, users, training_id = await started(world, KRUM, 6, cohort=cohort, target_num_updates=2)
        for user in await members(store, training_id, actor):
            await world.submit(training_id, 0, user)
        await store.trainings.remove_clients(training_id, actor, users[:2], world.now)
        if (await current(store, training_id)).state is not RoundState.AGGREGATING:
            pytest.fail("the round was closed with the updates that it had")
        await world.commit(training_id)
        found = await current(store, training_id)
        assert (found.number, found.state) == (1, RoundState.PENDING)
        view = await store.rounds.explain(training_id, 1, actor)
        assert view.lack == "krum(f=1) needs 5 registered participants, and there are 4"
        assert view.wait_rule is WaitRule.PARTICIPANTS
        assert not await store.rounds.open(training_id, 1, users[2:], world.now)
        await store.trainings.register(training_id, actor, users[:1], world.now)
        assert await store.rounds.open(training_id, 1, users[2:], world.now)
        found = await current(store, training_id)
        assert (found.state, found.members, found.chosen) == (RoundState.OPEN, 5, None if cohort is None else 5)
        for user in await members(store, training_id, actor):
            await world.submit(training_id, 1, user)
        assert await world.commit(training_id)
        await check(store)

    async def test_a_round_for_connected_participants_waits_for_enough_of_them(
        self, store: Store, world: World
    ) -> None:
        actor, users, training_id = await started(world, KRUM, 6, cohort=Cohort(available_only=True))
        pending = await store.rounds.pending(training_id, 0)
        assert pending is not None
        assert pending.wanted == 5
        assert (await store.rounds.explain(training_id, 0, actor)).wanted == 5
        assert not await store.rounds.open(training_id, 0, users[:4], world.now)
        assert await store.rounds.open(training_id, 0, users[:5], world.now)
        assert await members(store, training_id, actor) == users[:5]

    async def test_a_fraction_may_be_too_small(self, store: Store, world: World) -> None:
        with pytest.raises(CohortImpossible, match=r"asks for 4 updates, since 8 participants .*aggregation needs 5"):
            await started(world, KRUM, 8, cohort=Cohort(fraction=0.5))
        _, _, training_id = await started(world, KRUM, 10, cohort=Cohort(fraction=0.5))
        assert (await current(store, training_id)).needed == 5

    async def test_a_round_that_gets_too_few_ends_the_training(self, store: Store, world: World) -> None:
        actor, users, training_id = await started(world, KRUM, 5)
        await fail(world, training_id, users[0])
        for user in users[1:]:
            await world.submit(training_id, 0, user)
        failure = await ending(store, training_id, actor)
        assert failure.reason == "AGGREGATION_FAILED"
        assert failure.message == "the round cannot be aggregated: krum(f=1) needs 5 updates, and there are 4"
        await check(store)

    async def test_updates_without_examples_do_not_count(self, store: Store, world: World) -> None:
        actor, users, training_id = await started(world, KRUM, 5)
        for user in users:
            await world.submit(training_id, 0, user, num_examples=0 if user == users[0] else 10)
        assert (await ending(store, training_id, actor)).message.endswith("needs 5 updates, and there are 4")

    async def test_a_round_waits_for_others_if_it_has_enough_without_examples(self, store: Store, world: World) -> None:
        actor, users, training_id = await started(world, KRUM, 6, round_policy=RoundPolicy(min_updates=5))
        for user in users[:5]:
            await world.submit(training_id, 0, user, num_examples=0 if user == users[0] else 10)
        view = await store.rounds.explain(training_id, 0, actor)
        assert (view.round.state, view.wait_rule) == (RoundState.OPEN, WaitRule.ALL_UPDATES)
        assert view.lack == "krum(f=1) needs 5 updates, and there are 4"
        await world.submit(training_id, 0, users[5])
        assert (await current(store, training_id)).state is RoundState.AGGREGATING
        await check(store)

    async def test_a_round_that_may_be_repeated_waits_and_is(self, store: Store, world: World) -> None:
        actor, users, training_id = await started(world, KRUM, 5, round_policy=RETRY)
        await fail(world, training_id, users[0])
        for user in users[1:]:
            await world.submit(training_id, 0, user)
        found = await store.rounds.explain(training_id, 0, actor)
        assert (found.round.state, found.round.attempt, found.when_missed) == (RoundState.OPEN, 1, OnMissed.RETRY)
        (joining,) = await world.users(1)
        await store.trainings.register(training_id, actor, [joining], world.now)
        await store.rounds.judge(training_id, 0, due=True, now=world.now)
        found = await store.rounds.explain(training_id, 0, actor)
        assert (found.round.state, found.round.attempt, found.round.members) == (RoundState.OPEN, 2, 6)
        await world.submit(training_id, 0, joining)
        assert (await current(store, training_id)).state is RoundState.AGGREGATING
        assert await world.commit(training_id)
        await check(store)

    async def test_a_repeated_round_with_too_few_ends_the_training(self, store: Store, world: World) -> None:
        actor, users, training_id = await started(world, KRUM, 5, round_policy=RETRY)
        await fail(world, training_id, users[0])
        for user in users[1:]:
            await world.submit(training_id, 0, user)
        for _ in range(2):
            assert not await store.rounds.judge(training_id, 0, due=True, now=world.now)
        assert (await ending(store, training_id, actor)).reason == "AGGREGATION_FAILED"
        await check(store)


class TestTrustedParticipant:
    async def trusting(self, world: World, clients: int, **spec: Any) -> tuple[str, list[str], Training]:
        """A training that trusts the last of its clients."""
        actor, users = await world.user(Role.ACTOR), await world.users(clients)
        chosen = Aggregation(FLTrust(users[-1]))
        return actor, users, await world.training(actor, users[:-1], aggregation=chosen, **spec)

    async def test_it_exists_and_is_registered_at_the_start(self, store: Store, world: World) -> None:
        actor, users, training = await self.trusting(world, 3)
        with pytest.raises(NoParticipants, match="fl_trust needs the participant that it trusts") as raised:
            await store.trainings.start(training.training_id, actor, None, world.now)
        assert users[-1] not in str(raised.value)
        unknown = Aggregation(FLTrust(new_id()))
        with pytest.raises(UnknownClients, match=r"spec\.aggregation\.fl_trust"):
            await world.create(actor, replace(SPEC, aggregation=unknown))

    async def test_it_has_the_labels_of_the_cohort(self, store: Store, world: World) -> None:
        cohort = Cohort(labels={"gpu": "yes"})
        actor, users, training = await self.trusting(world, 3, cohort=cohort)
        await store.trainings.register(training.training_id, actor, users[-1:], world.now)
        others = [await world.user(gpu="yes") for _ in range(2)]
        await store.trainings.register(training.training_id, actor, others, world.now)
        with pytest.raises(CohortImpossible, match="not among the 2 participants with the labels"):
            await store.trainings.start(training.training_id, actor, None, world.now)

    async def test_it_is_in_each_cohort_and_no_round_closes_without_it(self, store: Store, world: World) -> None:
        cohort = Cohort(size=2, over_selection=2, seed=3)
        actor, users, training = await self.trusting(world, 12, cohort=cohort, target_num_updates=4)
        training_id, trusted = training.training_id, users[-1]
        await store.trainings.register(training_id, actor, [trusted], world.now)
        await store.trainings.start(training_id, actor, None, world.now)
        for number in range(4):
            asked = await members(store, training_id, actor)
            assert trusted in asked
            assert len(asked) == 4
            for user in [one for one in asked if one != trusted][:2]:
                await world.submit(training_id, number, user)
            assert (await current(store, training_id)).state is RoundState.OPEN
            await world.submit(training_id, number, trusted)
            assert await world.commit(training_id)
        await check(store)

    async def test_participants_do_not_learn_who_it_is(self, store: Store, world: World) -> None:
        actor, users, training = await self.trusting(world, 3)
        training_id, trusted = training.training_id, users[-1]
        await store.trainings.register(training_id, actor, [trusted], world.now)
        await store.trainings.start(training_id, actor, None, world.now)
        known = [(await store.trainings.get(training_id, user)).spec.aggregation.rule for user in (actor, users[0])]
        assert known == [FLTrust(trusted), FLTrust("")]
        listed = await store.trainings.page(users[0], as_actor=False, before=None, limit=10)
        assert [one.spec.aggregation.rule for one in listed] == [FLTrust("")]
        told = [one.payload for one in await log(store, training_id, users[0])]
        assert [one.aggregation.rule for one in told if isinstance(one, RoundStarted)] == [FLTrust("")]

    async def test_a_round_that_loses_it_ends_the_training(self, store: Store, world: World) -> None:
        actor, users, training = await self.trusting(world, 4, target_num_updates=2)
        training_id, trusted = training.training_id, users[-1]
        await store.trainings.register(training_id, actor, [trusted], world.now)
        await store.trainings.start(training_id, actor, None, world.now)
        for user in users:
            await world.submit(training_id, 0, user)
        await world.commit(training_id)
        await store.trainings.remove_clients(training_id, actor, [trusted], world.now)
        # The round that was open goes on, and lacks its update.
        for user in users[:-1]:
            await world.submit(training_id, 1, user)
        failure = await ending(store, training_id, actor)
        assert failure.reason == "AGGREGATION_FAILED"
        assert "fl_trust needs the participant that it trusts" in failure.message
        assert trusted not in failure.actor_message
        await check(store)

    async def test_a_round_without_it_is_pending(self, store: Store, world: World) -> None:
        actor, users, training = await self.trusting(world, 4, target_num_updates=2)
        training_id, trusted = training.training_id, users[-1]
        await store.trainings.register(training_id, actor, [trusted], world.now)
        await store.trainings.start(training_id, actor, None, world.now)
        for user in users:
            await world.submit(training_id, 0, user)
        await store.trainings.remove_clients(training_id, actor, [trusted], world.now)
        await world.commit(training_id)
        view = await store.rounds.explain(training_id, 1, actor)
        assert view.round.state is RoundState.PENDING
        assert view.lack is not None
        assert view.lack.startswith("fl_trust needs the participant that it trusts")
        assert not await store.rounds.open(training_id, 1, users[:-1], world.now)
        await store.trainings.register(training_id, actor, [trusted], world.now)
        assert await store.rounds.open(training_id, 1, users, world.now)
        assert (await current(store, training_id)).members == 4
        await check(store)
