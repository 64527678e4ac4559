"""Two programs that take part as one user: the second one is told."""

import grpc
import pytest

from calls import Person, fails_with, kinds, new_id, until
from fedround.v1 import training_pb2


@pytest.fixture
def client(clients: list[Person]) -> Person:
    return clients[0]


@pytest.fixture
def training(actor: Person, client: Person) -> training_pb2.Training:
    return actor.create(client_ids=[client.user_id])


def reject(client: Person, training_id: str) -> None:
    with fails_with("FAILED_PRECONDITION", "ALREADY_PARTICIPATING", "another machine", "fedround user create"):
        next(client.subscribe(training_id, session_id=new_id()))


@pytest.mark.parametrize("first_to_all", [False, True])
@pytest.mark.parametrize("second_to_all", [False, True])
def test_a_second_session_is_rejected(
    client: Person, training: training_pb2.Training, first_to_all: bool, second_to_all: bool
) -> None:
    first = client.subscribe("" if first_to_all else training.training_id, session_id=new_id())
    reject(client, "" if second_to_all else training.training_id)
    first.cancel()


def test_the_first_session_goes_on(actor: Person, client: Person, training: training_pb2.Training) -> None:
    first = client.subscribe(training.training_id, session_id=new_id())
    reject(client, training.training_id)
    actor.start(training.training_id)
    assert kinds(first.next(2)) == ["training_started", "round_started"]


def test_a_session_may_replace_its_own_subscription(
    actor: Person, client: Person, training: training_pb2.Training
) -> None:
    session = new_id()
    lost, replaced = (client.subscribe(training.training_id, session_id=session) for _ in range(2))
    lost.cancel()
    actor.start(training.training_id)
    assert kinds(replaced.next(2)) == ["training_started", "round_started"]
    reject(client, training.training_id)


def test_watching_needs_no_session(client: Person, training: training_pb2.Training) -> None:
    open_ones = [client.subscribe(training.training_id, session_id=session) for session in ("", new_id(), "", "")]
    for one in open_ones:
        assert one.stream.is_active()
        one.cancel()


def test_sessions_in_different_trainings_are_independent(
    actor: Person, client: Person, training: training_pb2.Training
) -> None:
    other = actor.create(client_ids=[client.user_id])
    open_ones = [client.subscribe(one.training_id, session_id=new_id()) for one in (training, other)]
    assert all(one.stream.is_active() for one in open_ones)
    reject(client, "")


def test_after_the_end_of_a_session_another_one_can_begin(client: Person, training: training_pb2.Training) -> None:
    client.subscribe(training.training_id, session_id=new_id()).cancel()

    def accepted() -> bool:
        try:
            client.subscribe(training.training_id, session_id=new_id()).stream.initial_metadata()
        except grpc.RpcError:
            return False
        return True

    until(accepted)


def test_a_malformed_session_is_named(client: Person, training: training_pb2.Training) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "session_id"):
        next(client.subscribe(training.training_id, session_id="mine"))
