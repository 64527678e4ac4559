"""A server is as large behind many rounds as behind a few: counted in the objects of this process, in which it runs."""

import asyncio
import gc
import weakref
from collections import Counter
from pathlib import Path

import grpc

from calls import Person, model_file
from fedround_server.app import serve
from fedround_server.config import Settings

# More rounds than the hundred cancelled timers that asyncio lets lie.
FIRST, ROUNDS = 30, 150
# The same file each time: new ones make the server remember new folders of blobs, up to 256.
UPDATE = model_file(1)


def objects() -> Counter[str]:
    """How many objects there are of each type.

    Not weak references to what is gone: sqlite3 drops those to its cursors behind every two hundredth one only.
    """
    gc.collect()
    return Counter(
        f"{type(one).__module__}.{type(one).__qualname__}"
        for one in gc.get_objects()
        if type(one) is not weakref.ReferenceType or one() is not None
    )


def play(address: str, admin_token: str) -> list[Counter[str]]:
    """Goes through the rounds of a training; returns what there was behind the first ones, and at the end."""
    found = []
    with grpc.insecure_channel(address) as channel:
        actor = Person(channel, admin_token)
        client = actor.make(address, "CLIENT")
        training_id = actor.create(client_ids=[client.user_id], target_num_updates=FIRST + ROUNDS + 1).training_id
        actor.start(training_id)
        theirs, ours = actor.subscribe(training_id), client.subscribe(training_id)
        for number in range(FIRST + ROUNDS + 1):
            for events in (theirs, ours):
                while not next(events).HasField("round_started"):
                    pass
            if number in (FIRST, FIRST + ROUNDS):
                found.append(objects())
            client.submit(training_id, UPDATE, number)
        for events in (theirs, ours):
            events.cancel()
        client.channel.close()
    return found


async def test_no_object_stays_of_a_round(tmp_path: Path) -> None:
    async with serve(Settings(listen="127.0.0.1:0", data_dir=tmp_path)) as address:
        token = (tmp_path / "admin.token").read_text().strip()
        before, after = await asyncio.to_thread(play, address, token)
    assert {name: more for name, more in (after - before).items() if more >= ROUNDS} == {}
