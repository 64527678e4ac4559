"""Kills servers while tests use them."""

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import fedround_client as fr
from servers import Server

T = TypeVar("T")


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


def with_and_without(
    kills: int,
    seed: int,
    folder: Path,
    database: str,
    copied: Callable[[], str],
    prepare: Callable[[Path, str], tuple[str, list[str]]],
    run: Callable[[Server, str, list[str], Killer | None], T],
) -> tuple[T, T]:
    """Runs a training twice from the same start: undisturbed, and on a server that is killed so often.

    Args:
        kills: How often.
        seed: Of the moments.
        folder: For both servers' data.
        database: What --database gets.
        copied: Copies the database.
        prepare: Makes a training in a data directory; returns its id and all tokens.
        run: Runs the training to its end; returns what came out.
    """
    training_id, tokens = prepare(folder / "original", database)
    shutil.copytree(folder / "original", folder / "killed")
    copy = copied()
    with Server(folder / "original", database=database) as server:
        expected = run(server, training_id, tokens, None)
    with Server(folder / "killed", database=copy) as server:
        killer = Killer(server, seed)
        survived = run(server, training_id, tokens, killer)
        with fr.connect(server.address, server.admin_token) as admin:
            report = admin.verify_audit()
    assert report.updates == report.counted > 0
    assert killer.kills == kills
    return expected, survived
