"""The calls of verbs that wait to be run, by what they can be run together with."""

from collections.abc import Hashable, Sequence
from threading import Lock

from fedround_server.store.db.group_commit import Call


class WaitingCalls:
    """Calls of verbs, which threads take in the order in which they came; those of a group are taken together.

    Two transactions about one round would wait for each other's lock. So while one thread runs calls of a group, no
    other one takes any: they are taken together afterwards.
    """

    def __init__(self) -> None:
        """Begins without calls."""
        self._groups: dict[Hashable, list[Call]] = {}
        self._running: set[Hashable] = set()
        self._lock = Lock()

    def add(self, call: Call) -> None:
        """Adds a call behind the others."""
        with self._lock:
            self._groups.setdefault(call.group, []).append(call)

    def take_all(self, most: int) -> list[Call]:
        """Takes up to so many calls; those of a group follow each other."""
        with self._lock:
            taken: list[Call] = []
            while self._groups and len(taken) < most:
                taken += self._take(next(iter(self._groups)), most - len(taken))
            return taken

    def take_group(self, most: int) -> list[Call]:
        """Takes up to so many calls of the first group that no thread runs; `finish` must follow if there are any."""
        with self._lock:
            group = next((group for group in self._groups if group not in self._running), None)
            if group is None:
                return []
            self._running.add(group)
            return self._take(group, most)

    def take_more(self, calls: Sequence[Call], most: int) -> list[Call]:
        """Takes calls of the group of some that a thread runs, so that it has up to so many."""
        with self._lock:
            return self._take(calls[0].group, most - len(calls))

    def finish(self, calls: Sequence[Call]) -> bool:
        """Lets a thread take other calls of the group of some that have been run; returns whether any wait."""
        group = calls[0].group
        with self._lock:
            self._running.discard(group)
            return group in self._groups

    def _take(self, group: Hashable, most: int) -> list[Call]:
        waiting = self._groups.pop(group, [])
        if waiting[most:]:
            self._groups[group] = waiting[most:]
        return waiting[:most]
