"""Batched verbs: a question gets the same answer alone and in a batch; on both databases."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import peewee
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregations import fed_dc
from contracts import reference_views
from contracts.world import World, blob, new_id
from fedround_server import batch
from fedround_server.domain.errors import CursorExpired, FedroundError, StoreUnavailable, TrainingNotFound
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.token import Token
from fedround_server.domain.user import Role, User, UserView
from fedround_server.store import Store
from fedround_server.store.db.group_commit import Transactions
from fedround_server.store.queries import event_log
from fedround_server.store.queries.event_log import LogPage
from fedround_server.store.queries.log_view import LogView
from sizes import examples

R = TypeVar("R")
CLIENTS = 4
POLICY = RoundPolicy(1, timedelta(minutes=1), on_missed=OnMissed.RETRY, max_retries=20)
DEEDS = ("register", "remove", "submit", "submit", "miss")
deeds = st.tuples(
    st.sampled_from([*DEEDS, *DEEDS, "start", "remove training"]), st.integers(0, CLIENTS), st.integers(0, 1)
)
histories = st.lists(deeds, min_size=6, max_size=20).map(lambda some: [("start", 0, 0), *some])


async def answer(question: Awaitable[R]) -> R | type[FedroundError]:
    try:
        return await question
    except FedroundError as error:
        return type(error)


async def live(store: Store, world: World, history: Sequence[tuple[str, int, int]]) -> tuple[list[str], list[str]]:
    """Two trainings with a history; returns the users, with the actor and an unrelated user, and the trainings."""
    actor = await world.user(Role.ACTOR)
    # The actor may take part, too.
    users = [actor, *await world.users(CLIENTS)]
    # In a chain, who is registered does not join before it ends: not all are in the cohort.
    chain = fed_dc(daisy_period=1, aggregation_period=3, seed=0)
    spec: dict[str, Any] = {"target_num_updates": 4, "round_policy": POLICY, "aggregation": chain}
    trainings = [(await world.training(actor, users[1:3], **spec)).training_id for _ in range(2)]
    for deed, who, which in history:
        training_id, user = trainings[which], users[who]
        with suppress(FedroundError):
            number = (await store.trainings.get(training_id, actor)).round
            match deed:
                case "start":
                    await store.trainings.start(training_id, actor, None, world.now)
                case "register":
                    await store.trainings.register(training_id, actor, [user], world.now)
                case "remove":
                    await store.trainings.remove_clients(training_id, actor, [user], world.now)
                case "submit":
                    await world.submit(training_id, number, user)
                    await world.commit(training_id)
                case "miss":
                    await store.rounds.judge(training_id, number, due=True, now=world.now)
                case "remove training":
                    await store.trainings.remove(training_id, actor, force=True, now=world.now)
    return [*users, await world.user()], trainings


@pytest.mark.attack
@given(history=histories, most=st.sampled_from([1, 3, 500]), page=st.sampled_from([1, 2, 100]), data=st.data())
@examples(10, 25)
async def test_each_is_answered_as_if_it_were_alone(
    store: Store,
    world: World,
    history: list[tuple[str, int, int]],
    most: int,
    page: int,
    data: st.DataObject,
) -> None:
    users, trainings = await live(store, world, history)
    unknown = new_id()
    events = store.events

    async def plainly(ask: Callable[[], R]) -> R:
        return await store.events.database.run(ask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "MAX_BATCH", most)
        patch.setattr(event_log, "PAGE", page)

        views: dict[tuple[str, str], LogView] = {}
        for user in users:
            for some in (trainings, trainings[:1], [], [trainings[0], unknown]):
                expected = await plainly(lambda user=user, some=some: reference_views.views(user, some))
                found = await answer(events.views(user, some))
                if len(expected) < len(some):
                    assert found is TrainingNotFound
                else:
                    assert by_training(found) == by_training(expected)
                views |= {(view.training_id, user): view for view in expected}
            opened = await plainly(lambda user=user: reference_views.open_views(user))
            assert by_training(await events.open_views(user)) == by_training(opened)

        pairs = [(training_id, user) for user in users for training_id in (*trainings, unknown)]
        cursors, limits = st.none() | st.integers(0, 20), st.sampled_from([1, 2, 100])
        asked = [(*pair, data.draw(cursors), data.draw(limits)) for pair in pairs for _ in range(2)]
        polled = await asyncio.gather(*(answer(events.poll(*one)) for one in asked))
        for (training_id, user, cursor, limit), page in zip(asked, polled, strict=True):
            view = views.get((training_id, user))
            if view is None:
                assert page is TrainingNotFound
            elif cursor is not None and cursor > view.last_sequence:
                assert page is CursorExpired
            else:
                question = (view, user, cursor, limit)
                found, after = await plainly(lambda question=question: reference_views.read(*question))
                assert isinstance(page, LogPage)
                assert (page.view, list(page.events), page.cursor) == (view, found, after)


def by_training(views: Any) -> list[LogView]:
    return sorted(views, key=lambda view: view.training_id)


async def test_credentials_are_distinguished_however_many_ask(store: Store, world: World) -> None:
    made, expected = [], []
    for number in range(6):
        user = User(new_id(), f"user {new_id()}", Role.CLIENT, world.now)
        token = Token(blob(user.user_id).sha256, user.create_time)
        names = [f"{number}-{part}.example" for part in range(number % 3)]
        await store.users.create([UserView(user, tuple(names), (token,))])
        made.append((user, token, tuple(names)))
    (first, token, _), (second, _, one_name), (third, _, two_names) = made[:3]
    removed = made[5]
    await store.users.remove(removed[0].user_id, world.now)
    asked = [
        Credentials(token.token_hash),
        Credentials(None),
        Credentials(None, one_name),
        Credentials(token.token_hash, two_names),
        Credentials(blob("nobody").sha256, ("nobody.example",)),
        Credentials(removed[1].token_hash, removed[2]),
        Credentials(None, (*one_name, *two_names)),
    ]
    expected = [
        Identity(first, token),
        Identity(),
        Identity(certified=(second,)),
        Identity(first, token, (third,)),
        Identity(),
        Identity(),
        Identity(certified=(second, third)),
    ]
    assert await asyncio.gather(*(store.credentials.identify(one) for one in asked)) == expected
    assert [await store.credentials.identify(one) for one in asked] == expected


async def test_many_questions_take_few_transactions(store: Store, world: World, verbs: list[str]) -> None:
    actor, clients, training = await world.running(3)
    verbs.clear()
    askers = 3 * batch.MAX_BATCH
    await asyncio.gather(*(store.events.poll(training.training_id, clients[0], 0, 100) for _ in range(askers)))
    assert verbs == ["event.poll"] * 3
    verbs.clear()
    # What is asked while a transaction runs waits for the next one, and that is enough for all.
    asking = [asyncio.create_task(store.events.poll(training.training_id, actor, 0, 100))]
    while not verbs:
        await asyncio.sleep(0)
    asking += [asyncio.create_task(store.events.poll(training.training_id, one, 0, 100)) for one in clients]
    await asyncio.gather(*asking)
    assert verbs == ["event.poll"] * 2


async def test_who_goes_takes_nothing_from_the_others(store: Store, world: World) -> None:
    _, clients, training = await world.running(3)
    asking = [asyncio.create_task(store.events.poll(training.training_id, one, 0, 100)) for one in clients]
    asking[0].cancel()
    await asyncio.sleep(0)
    asking[1].cancel()
    assert (await asking[2]).view.training_id == training.training_id
    assert asking[0].cancelled()
    with pytest.raises(asyncio.CancelledError):
        await asking[1]
    # All of them gone, and the next one is answered.
    asking = [asyncio.create_task(store.events.poll(training.training_id, one, 0, 100)) for one in clients]
    await asyncio.sleep(0)
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert (await store.events.poll(training.training_id, clients[0], 0, 100)).view.training_id == training.training_id


async def test_a_database_that_does_not_answer_is_reported_to_all(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clients, training = await world.running(3)
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise peewee.OperationalError("the server closed the connection")

        patch.setattr(Transactions, "_run", fail)
        polls = (store.events.poll(training.training_id, one, 0, 100) for one in clients)
        answers = await asyncio.gather(*map(answer, polls))
        assert answers == [StoreUnavailable] * 3
    assert (await store.events.poll(training.training_id, clients[0], 0, 100)).view.training_id == training.training_id
