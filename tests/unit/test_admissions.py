"""How much is kept of what the updates of rounds must be."""

import pytest

from contracts.blobs import small
from fedround_server.coordinator import admissions
from fedround_server.coordinator.admissions import MAX_TENSORS, MIN_TENSORS, Admissions
from fedround_server.domain.model import Dtype, TensorSpec
from fedround_server.domain.rounds.kind import ExpectedTensors
from fedround_server.domain.update import NewUpdate
from fedround_server.store.queries.submission import Admission

SPEC = TensorSpec(Dtype.F32, (1,))


def update(number: int, user_id: str = "user") -> NewUpdate:
    return NewUpdate("training", number, user_id, small(b"").blob, 1, {})


def admission(number: int, tensors: int) -> Admission:
    expected = ExpectedTensors({str(one): SPEC for one in range(tensors)})
    return Admission(number, expected, bound=None, model=None, is_shared=True)


@pytest.mark.parametrize(
    ("tensors", "kept"), [(1, MAX_TENSORS // MIN_TENSORS), (MAX_TENSORS // 2, 2), (MAX_TENSORS + 1, 0)]
)
def test_rounds_are_kept_by_the_number_of_their_tensors(tensors: int, kept: int) -> None:
    all_of_them, one = Admissions(), admission(0, tensors)
    numbers = range(kept + 3)
    for number in numbers:
        all_of_them.add(update(number), one)
    assert [number for number in numbers if all_of_them.find(update(number)) is not None] == [*numbers[3:]]


def test_users_are_kept_that_were_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "MAX_USERS", 2)
    all_of_them = Admissions()
    for name in ("first", "second"):
        all_of_them.add(update(0, name), admission(0, 1))
    assert all_of_them.find(update(0, "first")) is not None
    all_of_them.add(update(0, "third"), admission(0, 1))
    assert [all_of_them.find(update(0, name)) is None for name in ("first", "second", "third")] == [False, True, False]
