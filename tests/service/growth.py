"""Counts the objects of a server behind a few rounds and behind many: `python -m service.growth DATA_DIR`.

It has a process of its own, so that nothing else makes objects. The last line that it writes is JSON: how many objects
more there are of each type.
"""

import asyncio
import gc
import json
import sys
import weakref
from collections import Counter
from pathlib import Path

import grpc

from calls import Person, model_file
from fedround_server.app import serve
from fedround_server.config import Settings

# More rounds than the hundred cancelled timers that asyncio lets lie.
FIRST, ROUNDS = 15, 110
# The same file each time: new ones make the server remember new folders of blobs, up to 256.
UPDATE = model_file(1)


def objects() -> Counter[str]:
    """Counts the objects of each type.

    Weak references to what is gone don't count: sqlite3 keeps those to its cursors for a while.
    """
    gc.collect()
    return Counter(
        f"{type(one).__module__}.{type(one).__qualname__}"
        for one in gc.get_objects()
        if type(one) is not weakref.ReferenceType or one() is not None
    )


def play(address: str, admin_token: str) -> list[Counter[str]]:
    """Plays the rounds of a training; returns the objects behind the first ones, and at the end."""
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


async def main(data_dir: Path) -> None:
    async with serve(Settings(listen="127.0.0.1:0", data_dir=data_dir)) as address:
        token = (data_dir / "admin.token").read_text().strip()
        before, after = await asyncio.to_thread(play, address, token)
    sys.stdout.write(f"\n{json.dumps(after - before)}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
