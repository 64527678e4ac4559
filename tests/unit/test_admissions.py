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


def update(number: int, user_id: str = "user", training_id: str = "training") -> NewUpdate:
    return NewUpdate(training_id, number, user_id, small(b"").blob, 1, {})


def admission(number: int, tensors: int) -> Admission:
    expected = ExpectedTensors({str(one): SPEC for one in range(tensors)})
    return Admission(number, expected, bound=None, model=None, is_shared=True)


@pytest.mark.parametrize(
    ("tensors", "kept"), [(1, MAX_TENSORS // MIN_TENSORS), (MAX_TENSORS // 2, 2), (MAX_TENSORS + 1, 0)]
)
def test_trainings_are_kept_by_the_number_of_their_tensors(tensors: int, kept: int) -> None:
    all_of_them, one = Admissions(), admission(0, tensors)
    updates = [update(0, training_id=f"training {number}") for number in range(kept + 3)]
    for new in updates:
        all_of_them.add(new, one)
    assert [new for new in updates if all_of_them.find(new) is not None] == updates[3:]


def test_the_last_round_of_a_training_is_kept() -> None:
    all_of_them = Admissions()
    for number in range(2):
        all_of_them.add(update(number), admission(number, 1))
    assert [all_of_them.find(update(number)) is None for number in range(3)] == [True, False, True]


def test_users_are_kept_that_were_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "MAX_USERS", 2)
    all_of_them = Admissions()
    for name in ("first", "second"):
        all_of_them.add(update(0, name), admission(0, 1))
    assert all_of_them.find(update(0, "first")) is not None
    all_of_them.add(update(0, "third"), admission(0, 1))
    assert [all_of_them.find(update(0, name)) is None for name in ("first", "second", "third")] == [False, True, False]
