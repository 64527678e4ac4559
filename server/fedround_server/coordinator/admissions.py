"""What the updates of rounds must be, so that the database is asked for the first one of a round only."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedround_server.domain.model import Manifest
from fedround_server.domain.partial_sum import COMPONENTS, components_of, sum_tensors
from fedround_server.domain.rounds.kind import ExpectedTensors
from fedround_server.domain.update import NewUpdate
from fedround_server.engine.format.compare import check_same
from fedround_server.store.queries.submission import Admission

K = TypeVar("K")
V = TypeVar("V")
MAX_TENSORS = 40_000
"""How many tensors the admissions that are kept name together. Each takes some 500 bytes, twice with an update's."""
MIN_TENSORS = 100
"""As how many tensors an admission counts at least."""
MAX_USERS = 20_000
"""How many users are known to see a training."""


@dataclass(frozen=True, slots=True)
class Terms:
    """An admission, and the checks of the tensors of an update and of a partial sum that follow from it."""

    admission: Admission
    check: Callable[[Manifest], None]
    check_sum: Callable[[Manifest], None]


class Admissions:
    """The admission of the last round of each training, if it holds for all updates of the round.

    What such an update must be never changes: the round's kind, the training's spec and the tensors of its model stay
    as they are. Whether it is accepted is for the transaction that accepts it. Only users who are known to see the
    training find an admission, so that nothing tells others that the training exists.
    """

    def __init__(self) -> None:
        self._trainings: _Latest[str, Terms] = _Latest(MAX_TENSORS, _count_tensors)
        self._users: _Latest[tuple[str, str], bool] = _Latest(MAX_USERS, lambda _: 1)

    def find(self, new: NewUpdate) -> Terms | None:
        """Returns the terms of an update; None if the database is to be asked."""
        if not self.knows(new.training_id, new.user_id):
            return None
        terms = self._trainings.find(new.training_id)
        return terms if terms is not None and terms.admission.round == new.round else None

    def add(self, new: NewUpdate, admission: Admission) -> Terms:
        """Returns the terms of an update that was admitted, and keeps them for the others of its round."""
        terms = Terms(admission, _tensor_check(admission.tensors), _sum_check(admission.tensors))
        if admission.is_shared:
            self._trainings.add(new.training_id, terms)
            self.know(new.training_id, new.user_id)
        return terms

    def shares_terms(self, new: NewUpdate) -> bool:
        """Returns whether an update probably has the terms of the others of its round, as in the round before."""
        return self.knows(new.training_id, new.user_id) and self._trainings.find(new.training_id) is not None

    def knows(self, training_id: str, user_id: str) -> bool:
        """Returns whether a user is known to see a training."""
        return self._users.find((training_id, user_id)) is not None

    def know(self, training_id: str, user_id: str) -> None:
        """Records that a user sees a training: it has read its log, or has submitted an update."""
        self._users.add((training_id, user_id), True)


class _Latest(Generic[K, V]):
    """The items that were used last, of which the sizes have a limit together."""

    def __init__(self, limit: int, size_of: Callable[[V], int]) -> None:
        self._left = limit
        self._size_of = size_of
        self._items: OrderedDict[K, V] = OrderedDict()

    def find(self, key: K) -> V | None:
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def add(self, key: K, value: V) -> None:
        if key in self._items:
            self._left += self._size_of(self._items.pop(key))
        self._items[key] = value
        self._left -= self._size_of(value)
        while self._left < 0:
            self._left += self._size_of(self._items.popitem(last=False)[1])


def _count_tensors(terms: Terms) -> int:
    tensors = terms.admission.tensors
    return max(MIN_TENSORS, len(tensors.manifest) + len(tensors.differences or ()))


def _tensor_check(expected: ExpectedTensors) -> Callable[[Manifest], None]:
    # Equal headers have the same manifest, since they are parsed once: most updates of a round pass at once.
    accepted: Manifest | None = None

    def check(tensors: Manifest) -> None:
        nonlocal accepted
        if tensors is accepted:
            return
        check_same(
            tensors,
            expected.for_ranks_in(tensors),
            expected.differences,
            expected.private,
            notes=expected.notes,
        )
        accepted = tensors

    return check


def _sum_check(expected: ExpectedTensors) -> Callable[[Manifest], None]:
    def check(tensors: Manifest) -> None:
        # Errors refer to the form with the fewest components if it is none.
        components = components_of(tensors, expected.manifest) or COMPONENTS[0]
        check_same(tensors, sum_tensors(expected.manifest, components), private=expected.private)

    return check
