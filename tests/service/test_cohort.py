"""Cohorts over a real port: bad input, over-selection, waiting for connections, labels, attributes, and a kill."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import TIMEOUT, Person, fails_with, kinds, model_file, new_id, new_number, until
from fedround.v1 import round_pb2, training_pb2, user_pb2
from fedround.v1.training_pb2 import Cohort, RoundPolicy
from fedround_server.domain.cohort import draw
from servers import Server


def look(actor: Person, training_id: str) -> round_pb2.Round:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id)).round


def begin(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    made = actor.create(client_ids=[client.user_id for client in clients], **spec)
    return actor.start(made.training_id)


def chosen(actor: Person, training_id: str, clients: list[Person]) -> list[Person]:
    """The members of the current round, in canonical order."""
    asked = {one.user_id for one in look(actor, training_id).participants}
    return sorted((client for client in clients if client.user_id in asked), key=lambda client: client.user_id)


def wait_for(actor: Person, training_id: str) -> None:
    """Waits until the channel is connected to a server that was started again."""
    request = training_pb2.GetTrainingRequest(training_id=training_id)
    actor.trainings.GetTraining(request, wait_for_ready=True, timeout=TIMEOUT)


SECONDS = {"wait_after_min": {"seconds": 5}}

IMPOSSIBLE = [
    ({"cohort": Cohort(fraction=0)}, "cohort.fraction", "more than 0, and at most 1"),
    ({"cohort": Cohort(fraction=2)}, "cohort.fraction", "more than 0, and at most 1"),
    ({"cohort": Cohort(fraction=-0.5)}, "cohort.fraction", "more than 0, and at most 1"),
    ({"cohort": Cohort(fraction=math.nan)}, "cohort.fraction", "more than 0, and at most 1"),
    ({"cohort": Cohort(size=0)}, "cohort.size", "must be in 1..10000"),
    ({"cohort": Cohort(size=10_001)}, "cohort.size", "must be in 1..10000"),
    ({"cohort": Cohort(fraction=0.5, size=2)}, "cohort.size", "choose one"),
    ({"cohort": Cohort(size=2, over_selection=0.9)}, "cohort.over_selection", "must be at least 1"),
    ({"cohort": Cohort(size=2, over_selection=0)}, "cohort.over_selection", "must be at least 1"),
    ({"cohort": Cohort(size=2, over_selection=math.nan)}, "cohort.over_selection", "must be at least 1"),
    ({"cohort": Cohort(size=2, over_selection=math.inf)}, "cohort.over_selection", "at most 100"),
    ({"cohort": Cohort(over_selection=2)}, "cohort.over_selection", "needs spec.cohort.fraction or spec.cohort.size"),
    ({"cohort": Cohort(min_available=10_001)}, "cohort.min_available", "at most 10000"),
    ({"cohort": Cohort(labels={"": "x"})}, "cohort.labels", "is required"),
    ({"cohort": Cohort(labels={str(name): "" for name in range(51)})}, "cohort.labels", "at most 50"),
    ({"cohort": Cohort(labels={"x": "y" * 201})}, "cohort.labels['x']", "at most 200"),
    (
        {"cohort": Cohort(size=2), "round_policy": RoundPolicy(min_updates=3)},
        "round_policy.min_updates",
        "more than the 2",
    ),
    (
        {"cohort": Cohort(size=2), "evaluation_policy": RoundPolicy(min_updates=3)},
        "evaluation_policy.min_updates",
        "more than the 2",
    ),
    ({"round_policy": RoundPolicy(**SECONDS)}, "round_policy.wait_after_min", "needs spec.round_policy.min_updates"),
    (
        {"round_policy": RoundPolicy(min_updates=1, wait_after_min={"seconds": -1})},
        "round_policy.wait_after_min",
        "at least 0, and at most 365 days",
    ),
    (
        {"round_policy": RoundPolicy(min_updates=1, wait_after_min={"seconds": 1 << 40})},
        "round_policy.wait_after_min",
        "at least 0, and at most 365 days",
    ),
    ({"round_policy": RoundPolicy(wait_fraction=0.1)}, "round_policy.wait_fraction", "needs spec.round_policy"),
    (
        {"round_policy": RoundPolicy(min_updates=1, wait_fraction=math.nan)},
        "round_policy.wait_fraction",
        "at least 0, and at most 10",
    ),
    (
        {"evaluation_policy": RoundPolicy(max_retries=2)},
        "evaluation_policy.max_retries",
        "goes with on_missed",
    ),
]


@pytest.mark.parametrize(("spec", "field", "words"), IMPOSSIBLE, ids=[str(number) for number in range(len(IMPOSSIBLE))])
def test_a_cohort_that_makes_no_sense_is_rejected(actor: Person, spec: dict[str, Any], field: str, words: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words) as call:
        actor.create(**spec)
    assert f"spec.{field}" in call.details.fields
    assert not actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings


@pytest.mark.parametrize(
    ("cohort", "policy", "words"),
    [
        (Cohort(size=4), {}, "cohort.size is 4, and 3 participants are registered"),
        (Cohort(min_available=4), {}, "cohort.min_available is 4, and 3 participants are registered"),
        (Cohort(labels={"gpu": "yes"}), {}, "none of the 3 participants has all of them"),
        (Cohort(fraction=0.3), {"min_updates": 2}, "a round asks for 1 updates"),
    ],
)
def test_a_cohort_that_is_not_registered_is_rejected_at_the_start(
    actor: Person, clients: list[Person], cohort: Cohort, policy: dict[str, int], words: str
) -> None:
    client_ids = [client.user_id for client in clients]
    training_id = actor.create(cohort=cohort, client_ids=client_ids, round_policy=RoundPolicy(**policy)).training_id
    with fails_with("FAILED_PRECONDITION", "COHORT_IMPOSSIBLE", words):
        actor.start(training_id)
    assert actor.get(training_id).state == training_pb2.TRAINING_STATE_INITIAL


def test_a_cohort_is_drawn_and_the_actor_alone_sees_its_seed(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients, cohort=Cohort(size=2))
    training_id, seed = training.training_id, training.spec.cohort.seed
    assert training.spec.cohort == Cohort(size=2, over_selection=1, seed=seed)
    # 64 random bits, which cannot be found by trying.
    others = [actor.create(cohort={"size": 1}).spec.cohort.seed for _ in range(6)]
    assert max(seed, *others) >= 2**53
    assert not clients[0].get(training_id).spec.cohort.HasField("seed")
    found = look(actor, training_id)
    expected = draw(seed, training_id, 0, 1, [client.user_id for client in clients], 2)
    assert sorted(one.user_id for one in found.participants) == expected
    assert found.draw == round_pb2.CohortDraw(seed=seed, attempt=1, num_eligible=3, num_needed=2, num_chosen=2)
    (other,) = (client for client in clients if client.user_id not in expected)
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT"):
        other.submit(training_id, model_file(new_number()))


@pytest.mark.parametrize("never", [0.1, 0.5], ids=["a tenth never answers", "half never answer"])
def test_over_selection_makes_up_for_those_that_never_answer(
    actor: Person, person: Callable[..., Person], never: float
) -> None:
    clients = [person("CLIENT") for _ in range(20)]
    silent = {client.user_id for client in clients[: int(never * len(clients))]}
    # Of the 20, all are asked, and half are needed: those that answer are always enough.
    spec = {"cohort": Cohort(fraction=0.5, over_selection=2), "target_num_updates": 3}
    training_id = begin(actor, clients, **spec).training_id
    for number in range(3):
        asked = chosen(actor, training_id, clients)
        assert len(asked) == 20
        answering = [client for client in asked if client.user_id not in silent]
        for client in answering[:10]:
            client.submit(training_id, model_file(new_number()), number)
        until(lambda number=number: actor.get(training_id).model_version > number)
        if len(answering) > 10 and number == 0:
            with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "10 of 20 updates, which were enough") as late:
                answering[10].submit(training_id, model_file(new_number()), number)
            assert late.details.metadata["num_participants"] == "20"
    assert actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED
    found = look(actor, training_id)
    assert {one.user_id for one in found.participants if one.rounds_left_out == 3} >= silent


def test_those_that_are_released_are_told_at_once(actor: Person, clients: list[Person]) -> None:
    spec = {"cohort": Cohort(size=1, over_selection=2), "target_num_updates": 1}
    training_id = begin(actor, clients, **spec).training_id
    first, second = chosen(actor, training_id, clients)
    (other,) = (client for client in clients if client not in (first, second))
    events = {client.user_id: client.subscribe(training_id) for client in (first, second, other)}
    first.submit(training_id, model_file(new_number()))
    assert kinds(list(events[first.user_id])) == ["round_started", "round_closed", "training_finished"]
    released = list(events[second.user_id])
    assert kinds(released) == ["round_started", "work_not_needed", "round_closed", "training_finished"]
    told = released[1].work_not_needed
    assert (told.round, told.num_updates, told.num_participants) == (0, 1, 2)
    assert kinds(list(events[other.user_id])) == ["training_started", "training_finished"]


def test_a_round_waits_until_enough_participants_are_connected(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients, cohort=Cohort(min_available=2))
    training_id = training.training_id
    assert (training.state, training.updates_expected) == (training_pb2.TRAINING_STATE_ONGOING, 0)
    found = look(actor, training_id)
    assert (found.state, found.wait_rule) == (round_pb2.ROUND_STATE_PENDING, round_pb2.WAIT_RULE_PARTICIPANTS)
    assert (found.num_connected, found.waiting_for) == (0, "participants: 0 of 2 connected")
    assert (len(found.not_connected), found.num_registered) == (3, 3)
    first = clients[0].subscribe(training_id)
    until(lambda: look(actor, training_id).waiting_for == "participants: 1 of 2 connected")
    absent = look(actor, training_id).not_connected
    assert {one.user_id for one in absent} == {client.user_id for client in clients[1:]}
    assert [one.name for one in absent] == sorted(one.name for one in absent)
    second = clients[1].subscribe(training_id)
    assert kinds(first.next(2)) == ["training_started", "round_started"]
    assert kinds(second.next(1)) in (["training_started"], ["round_started"])
    found = look(actor, training_id)
    assert (found.num_participants, len(found.not_connected)) == (3, 0)
    assert not clients[0].get(training_id).round_closed


def test_a_round_that_has_enough_waits_for_the_others(actor: Person, clients: list[Person]) -> None:
    policy = RoundPolicy(min_updates=2, wait_after_min={"seconds": 3600})
    training = begin(actor, clients, round_policy=policy)
    training_id = training.training_id
    assert training.spec.round_policy.wait_after_min.seconds == 3600
    for client in clients[:2]:
        client.submit(training_id, model_file(new_number()))
    found = look(actor, training_id)
    assert (found.state, found.wait_rule) == (round_pb2.ROUND_STATE_OPEN, round_pb2.WAIT_RULE_AFTER_MIN)
    assert (found.updates_arrived, found.updates_expected, found.updates_enough) == (2, 3, 2)
    assert found.wait_end_time.seconds - found.open_time.seconds >= 3600
    assert found.waiting_for.startswith("1 more of 3 updates (2 are enough), until ")
    clients[2].submit(training_id, model_file(new_number()))
    until(lambda: actor.get(training_id).model_version == 1)


def test_a_round_that_has_waited_closes(actor: Person, clients: list[Person]) -> None:
    policy = RoundPolicy(min_updates=2, wait_after_min={"nanos": 1_000_000})
    training_id = begin(actor, clients, round_policy=policy).training_id
    for client in clients[:2]:
        client.submit(training_id, model_file(new_number()))
    until(lambda: actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
    found = look(actor, training_id)
    assert {one.user_id: one.rounds_left_out for one in found.participants if not one.arrived} == {
        clients[2].user_id: 1
    }


def test_admins_set_labels_and_cohorts_select_by_them(
    server: Server, admin: Person, actor: Person, clients: list[Person]
) -> None:
    made = admin.users.CreateUser(user_pb2.CreateUserRequest(name=new_id(), role="ROLE_CLIENT", labels={"gpu": "yes"}))
    assert made.user.labels == {"gpu": "yes"}
    with grpc.insecure_channel(server.address) as channel:
        labelled = Person(channel, made.token, made.user.user_id)
        # A client does not see its own.
        assert not labelled.users.GetMyself(user_pb2.GetMyselfRequest()).user.labels
        training_id = begin(actor, [*clients, labelled], cohort=Cohort(labels={"gpu": "yes"})).training_id
        assert [one.user_id for one in look(actor, training_id).participants] == [labelled.user_id]
        request = user_pb2.UpdateUserRequest(user_id=labelled.user_id, labels={"site": "b"})
        assert admin.users.UpdateUser(request).user.labels == {"site": "b"}
        found = actor.users.GetUser(user_pb2.GetUserRequest(user_id=labelled.user_id)).user
        assert found.labels == {"site": "b"}
        with fails_with("NOT_FOUND", "USER_NOT_FOUND"):
            admin.users.UpdateUser(user_pb2.UpdateUserRequest(user_id=new_id()))
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "at most 100 are allowed"):
            admin.users.UpdateUser(user_pb2.UpdateUserRequest(user_id=labelled.user_id, labels={"x" * 101: ""}))


def test_attributes_are_shown_and_never_trusted(actor: Person, clients: list[Person]) -> None:
    training_id = begin(actor, clients, cohort=Cohort(size=3)).training_id
    events = clients[0].subscribe(training_id, attributes={"sdk": "fedround 9", "num_examples": "-1"})
    events.next(1)
    shown = {one.user_id: dict(one.attributes) for one in look(actor, training_id).participants}
    assert shown[clients[0].user_id] == {"sdk": "fedround 9", "num_examples": "-1"}
    assert shown[clients[1].user_id] == {}
    # A subscription that says nothing, such as that of a second window, leaves it.
    clients[0].subscribe(training_id).next(1)
    assert dict(look(actor, training_id).participants[0].attributes) in shown.values()
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "has 21 entries; at most 20"):
        clients[0].subscribe(training_id, attributes={str(number): "" for number in range(21)}).next(1)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "at most 200 are allowed"):
        clients[0].subscribe(training_id, attributes={"x": "y" * 201}).next(1)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server


def test_a_kill_between_the_draw_and_the_close_changes_nothing(own_server: Server) -> None:
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(own_server.address))
        admin = Person(channel, own_server.admin_token)
        actor = admin.make(own_server.address, "ACTOR")
        clients = [admin.make(own_server.address, "CLIENT") for _ in range(6)]
        for one in (actor, *clients):
            stack.callback(one.channel.close)
        policy = RoundPolicy(min_updates=2, wait_after_min={"seconds": 3600})
        spec = {"cohort": Cohort(size=3, over_selection=1.5, min_available=1), "round_policy": policy}
        training_id = begin(actor, clients, **spec, target_num_updates=2).training_id
        own_server.kill()
        own_server.start()
        wait_for(actor, training_id)
        assert look(actor, training_id).state == round_pb2.ROUND_STATE_PENDING
        events = clients[0].subscribe(training_id)
        until(lambda: look(actor, training_id).state == round_pb2.ROUND_STATE_OPEN)
        before = look(actor, training_id)
        asked = chosen(actor, training_id, clients)
        assert (len(asked), before.draw.num_needed) == (5, 3)
        for client in asked[:2]:
            client.submit(training_id, model_file(new_number()))
        waits = look(actor, training_id).wait_end_time
        own_server.kill()
        own_server.start()
        wait_for(actor, training_id)
        after = look(actor, training_id)
        assert (after.draw, after.wait_end_time) == (before.draw, waits)
        assert chosen(actor, training_id, clients) == asked
        asked[2].submit(training_id, model_file(new_number()))
        until(lambda: actor.get(training_id).model_version == 1)
        late = asked[3]
        with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "closed with 3 of 5 updates"):
            late.submit(training_id, model_file(new_number()))
        events.cancel()
