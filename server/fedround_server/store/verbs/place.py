"""The place of the files of a database, which it takes and remembers when a server starts."""

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from fedround_server.domain.place import Place, choose_id, known_id
from fedround_server.failpoints import reached
from fedround_server.store.queries.blob import page_needed_files
from fedround_server.store.queries.place import find_files_id
from fedround_server.store.tables.replica_schema import ServerStateRow

SAMPLE = 100
"""How many files of a database are looked for in a place that it does not remember."""


class PlaceClaim:
    """What a server says of the place of its files while it starts."""

    def __init__(self, place: Place) -> None:
        """Looks at nothing yet."""
        self._place = place
        self._taken = ""

    def files_id(self) -> str:
        """Returns the id of the place."""
        return self._taken or known_id(self._place)

    def take(self, begin: Callable[[], AbstractContextManager[None]]) -> None:
        """Makes sure that the place has the files of the database, and takes it if it belongs to none.

        Args:
            begin: Begins a transaction; none is open while the place is looked at.

        Raises:
            RuntimeError: It belongs to another database, or does not have the files.
        """

        def sample() -> list[tuple[str, int]]:
            with begin():
                return page_needed_files("", SAMPLE)

        with begin():
            remembered = find_files_id()
        chosen = choose_id(self._place, remembered, sample, str(uuid.uuid4()))
        if chosen != remembered:
            with begin():
                ServerStateRow.update(files_id=chosen).execute()
        # The database first: a place without an id can be taken again after an interruption.
        reached("start.claimed")
        found = self._place.create(chosen)
        if remembered and found == remembered != chosen:
            # An interrupted start had put it, and it came to the store after this one had looked.
            with begin():
                ServerStateRow.update(files_id=found).execute()
        elif found != chosen:
            raise RuntimeError(f"{self._place.name} was taken by another database just now: choose another place")
        self._taken = found
