"""Many subscriptions at once: each event reaches each of them once and in order, whoever comes and goes meanwhile."""

import asyncio
import itertools

import grpc

from calls import TIMEOUT, Person, model_file, until
from fedround.v1 import event_pb2, round_pb2, round_pb2_grpc
from servers import Server

MANY = 200
ROUNDS = 4


class Subscriber:
    """A subscription to one training, on a channel that others use too, and what came over it."""

    def __init__(self, channel: grpc.aio.Channel, token: str, training_id: str, **cursors: dict[str, int]) -> None:
        request = round_pb2.SubscribeRequest(training_id=training_id, **cursors)
        metadata = (("authorization", f"Bearer {token}"),)
        self.call = round_pb2_grpc.RoundServiceStub(channel).Subscribe(request, metadata=metadata, timeout=TIMEOUT)
        self.events: list[event_pb2.Event] = []

    async def read_to(self, number: int) -> None:
        """Reads on until a round has started."""
        async for event in self.call:
            if not event.HasField("heartbeat"):
                self.events.append(event)
            if event.HasField("round_started") and event.round_started.round == number:
                return
        raise AssertionError("it ended")


def sequences(one: Subscriber) -> list[int]:
    return [event.sequence for event in one.events]


async def test_each_event_reaches_each_subscriber_once_and_in_order(
    server: Server, admin: Person, actor: Person
) -> None:
    people = [admin.make(server.address, "CLIENT") for _ in range(MANY)]
    for one in people[1:]:
        one.channel.close()
    made = actor.create(
        client_ids=[one.user_id for one in people], target_num_updates=ROUNDS + 1, round_policy={"min_updates": 1}
    )
    actor.start(made.training_id)
    async with grpc.aio.insecure_channel(server.address) as channel:
        staying = [Subscriber(channel, one.token, made.training_id) for one in people]
        await asyncio.gather(*(one.read_to(0) for one in staying))
        reading = [asyncio.create_task(one.read_to(ROUNDS)) for one in staying]
        coming = asyncio.create_task(come_and_go(channel, people, made.training_id))
        for number in range(ROUNDS):
            await asyncio.to_thread(people[0].submit, made.training_id, model_file(number), number)
            await asyncio.to_thread(until, lambda number=number: actor.get(made.training_id).round > number)
        await asyncio.gather(*reading)
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        back = [
            Subscriber(channel, one.token, made.training_id, resume_after_sequence={made.training_id: 2})
            for one in people
        ]
        await asyncio.gather(*(one.read_to(ROUNDS) for one in back))
        for one in (*staying, *back):
            one.call.cancel()
    log = actor.subscribe(made.training_id, resume_after_sequence={made.training_id: 0}).next(2 + 3 * ROUNDS)
    public = [event.sequence for event in log if not event.HasField("update_accepted")]
    assert public == [1, 2, *itertools.chain(*((3 * number + 4, 3 * number + 5) for number in range(ROUNDS)))]
    for one in staying:
        assert sequences(one) == public[1:]
    for one in back:
        assert sequences(one) == public[2:]
    # Only a user that has submitted is shown so.
    last = [next(event for event in one.events if event.HasField("round_started")) for one in back]
    assert [event.round_started.submitted for event in last] == [True] + [False] * (MANY - 1)
    people[0].channel.close()


async def come_and_go(channel: grpc.aio.Channel, people: list[Person], training_id: str) -> None:
    """Subscribes and cancels, again and again."""
    for start in itertools.cycle(range(0, MANY, 20)):
        some = [Subscriber(channel, one.token, training_id) for one in people[start : start + 20]]
        await asyncio.gather(*(one.call.initial_metadata() for one in some[::2]))
        for one in some:
            one.call.cancel()
        await asyncio.sleep(0)
