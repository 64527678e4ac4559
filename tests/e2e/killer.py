"""Kills servers while tests use them."""

import random
import threading
import time
from typing import Self

from servers import Server


class Killer:
    """Kills a server at random moments, and starts it again. Its `with` block is the time in which others wait."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.kills = 0
        self._random = random.Random(seed)
        self._over = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def run(self, kills: int) -> None:
        for _ in range(kills):
            time.sleep(self._random.uniform(0, 0.4))
            self.server.kill()
            self.server.start()
            with self._changed:
                self.kills += 1
                self._changed.notify_all()

    def wait_for(self, kills: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.kills >= kills or self._over)
            assert self.kills >= kills
