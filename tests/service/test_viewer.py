"""A viewer reads all trainings as their actors do, and changes nothing; over a port, on both databases."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from calls import Person, fails_with, kinds, model_file, new_id
from fedround.v1 import audit_pb2, model_pb2, round_pb2, training_pb2, user_pb2
from postgres import create_database
from servers import Server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = ""
    if request.param == "postgresql":
        database = create_database(request.getfixturevalue("postgres"), request.getfixturevalue("template"))
    with Server(tmp_path_factory.mktemp("viewer") / "data", database=database) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


@pytest.fixture
def viewer(person: Callable[..., Person]) -> Person:
    return person("VIEWER")


def look(caller: Person, training_id: str, **request: Any) -> round_pb2.GetRoundResponse:
    return caller.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id, **request))


def listed(caller: Person, role: str = "UNSPECIFIED", **request: Any) -> list[training_pb2.Training]:
    """All trainings of a list."""
    asked = training_pb2.GetTrainingsRequest(role=f"TRAINING_ROLE_{role}", **request)
    found = []
    while True:
        page = caller.trainings.GetTrainings(asked)
        found += page.trainings
        asked.page_token = page.next_page_token
        if not asked.page_token:
            return found


def begin(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    made = actor.create(client_ids=[client.user_id for client in clients], **spec)
    return actor.start(made.training_id)


def everything(caller: Person, made: training_pb2.Training) -> list[Any]:
    """What a caller reads of a training and its model."""
    id_, model = made.training_id, {"model_id": made.model_id}
    return [
        caller.get(id_),
        look(caller, id_),
        look(caller, id_, view="ROUND_VIEW_SUMMARY"),
        caller.rounds.GetRounds(round_pb2.GetRoundsRequest(training_id=id_)),
        caller.models.GetModel(model_pb2.GetModelRequest(**model)),
        caller.models.GetModelVersions(model_pb2.GetModelVersionsRequest(**model)),
        caller.models.GetMetrics(model_pb2.GetMetricsRequest(**model)),
        caller.audit.GetContributions(audit_pb2.GetContributionsRequest(**model)),
    ]


def test_what_the_actor_reads(actor: Person, clients: list[Person], viewer: Person) -> None:
    config = {clients[0].user_id: {"values": {"rate": {"double_value": 0.1}}}}
    made = begin(actor, clients, metric_names=["loss"], cohort={"seed": 7}, client_config=config)
    clients[0].submit(made.training_id, model_file(1), metrics={"loss": 0.5})
    failure = {"training_id": made.training_id, "reason": "OUT_OF_MEMORY", "message": "no room"}
    clients[1].rounds.ReportFailure(round_pb2.ReportFailureRequest(**failure))
    assert everything(viewer, made) == everything(actor, made)
    events = viewer.subscribe(made.training_id)
    clients[2].submit(made.training_id, model_file(2), metrics={"loss": 0.7})
    # The next round soon no longer waits for who has failed and has no connection: nothing changes after that.
    assert kinds(events.next(7))[-3:] == ["round_closed", "round_started", "participant_failed"]
    assert everything(viewer, made) == everything(actor, made)
    assert viewer.get(made.training_id).spec.client_config


def test_a_viewer_of_trainings_that_it_may_not_change(actor: Person, clients: list[Person], viewer: Person) -> None:
    made = begin(actor, clients[:1])
    model = {"model_id": made.model_id}
    for call, request in (
        (viewer.trainings.StartTraining, training_pb2.StartTrainingRequest(training_id=made.training_id)),
        (viewer.trainings.RemoveTraining, training_pb2.RemoveTrainingRequest(training_id=made.training_id)),
        (viewer.models.RemoveModel, model_pb2.RemoveModelRequest(**model)),
        (viewer.models.GetModels, model_pb2.GetModelsRequest()),
        (viewer.audit.ReplayRound, audit_pb2.ReplayRoundRequest(training_id=made.training_id)),
        (viewer.users.GetUsers, user_pb2.GetUsersRequest()),
    ):
        with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "yours is VIEWER"):
            call(request)
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "yours is VIEWER"):
        next(viewer.models.DownloadModel(model_pb2.DownloadModelRequest(**model)))


def test_a_viewer_and_its_own_user(actor: Person, viewer: Person, server: Server) -> None:
    assert viewer.users.GetMyself(user_pb2.GetMyselfRequest()).user.role == user_pb2.ROLE_VIEWER
    assert viewer.users.GetUser(user_pb2.GetUserRequest(user_id=viewer.user_id)).user.tokens
    with fails_with("NOT_FOUND", "USER_NOT_FOUND"):
        viewer.users.GetUser(user_pb2.GetUserRequest(user_id=actor.user_id))
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "leave user_id empty"):
        viewer.users.RotateToken(user_pb2.RotateTokenRequest(user_id=actor.user_id))
    token = viewer.users.RotateToken(user_pb2.RotateTokenRequest()).token
    again = Person(viewer.channel, token)
    own = again.users.GetMyself(user_pb2.GetMyselfRequest()).user.tokens[0]
    again.users.RevokeToken(user_pb2.RevokeTokenRequest(token_id=own.token_id))
    with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
        again.users.GetMyself(user_pb2.GetMyselfRequest())


def test_a_viewer_cannot_be_registered(actor: Person, clients: list[Person], viewer: Person) -> None:
    ids = [clients[0].user_id, viewer.user_id]
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", "no such users", viewer.user_id):
        actor.create(client_ids=ids)
    made = actor.create()
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", "no such users", viewer.user_id) as registered:
        actor.trainings.RegisterClients(
            training_pb2.RegisterClientsRequest(training_id=made.training_id, client_ids=ids)
        )
    unknown = new_id()
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", unknown) as missing:
        request = training_pb2.RegisterClientsRequest(training_id=made.training_id, client_ids=[unknown])
        actor.trainings.RegisterClients(request)
    assert registered.details.message.replace(viewer.user_id, unknown) == missing.details.message
    assert not actor.get(made.training_id).participant_ids


def test_all_trainings_are_listed_for_viewers_only(
    person: Callable[..., Person], actor: Person, clients: list[Person], viewer: Person
) -> None:
    other = person("ACTOR", new_id())
    name = other.users.GetMyself(user_pb2.GetMyselfRequest()).user.name
    made = [actor.create(name="a"), other.create(name="b", client_ids=[clients[0].user_id]), actor.create(name="c")]
    wanted = [one.training_id for one in reversed(made)]
    for role in ("UNSPECIFIED", "VIEWER"):
        assert [one.training_id for one in listed(viewer, role, page_size=2)][:3] == wanted
    assert listed(viewer)[1] == listed(other)[0]
    assert [one.actor_name for one in listed(clients[0], "CLIENT")] == [name]
    assert listed(viewer, "ACTOR") == listed(viewer, "CLIENT") == []
    for caller, role in ((actor, "ACTOR"), (clients[0], "CLIENT"), (person("ADMIN"), "ADMIN")):
        with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", f"yours is {role}"):
            listed(caller, "VIEWER")


def test_what_is_removed_is_not_to_be_seen(actor: Person, clients: list[Person], viewer: Person) -> None:
    stored = actor.create().model_id
    made = begin(actor, clients[:1])
    actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=made.training_id, force=True))
    assert made.training_id not in {one.training_id for one in listed(viewer)}
    for training_id in (made.training_id, new_id()):
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            viewer.get(training_id)
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            look(viewer, training_id)
    for model_id in (made.model_id, new_id()):
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
            viewer.models.GetModel(model_pb2.GetModelRequest(model_id=model_id))
    viewer.models.GetModel(model_pb2.GetModelRequest(model_id=stored))


class TestSubscriptions:
    def test_one_training(self, actor: Person, clients: list[Person], viewer: Person) -> None:
        made = begin(actor, clients[:2], metric_names=["loss"])
        watching, steering = viewer.subscribe(made.training_id), actor.subscribe(made.training_id)
        for client in clients[:2]:
            client.submit(made.training_id, model_file(1), metrics={"loss": 0.5, "own": 1.0})
        found = watching.next(4)
        assert found == steering.next(4)
        assert kinds(found) == ["round_started", "update_accepted", "update_accepted", "round_closed"]
        assert found[-1].round_closed.metrics["own"] == 1.0
        resumed = viewer.subscribe(made.training_id, resume_after_sequence={made.training_id: found[1].sequence})
        assert resumed.next(2) == found[2:]
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            next(viewer.subscribe(new_id()))

    def test_all_trainings_also_later_ones(
        self, person: Callable[..., Person], actor: Person, clients: list[Person], viewer: Person
    ) -> None:
        before, other = begin(actor, clients[:1]), person("ACTOR")
        events = viewer.subscribe()

        def of(training_id: str, count: int) -> list[Any]:
            """The next events of a training."""
            found: list[Any] = []
            while len(found) < count:
                event = next(events)
                found += [event] if event.training_id == training_id else []
            return found

        assert kinds(of(before.training_id, 1)) == ["round_started"]
        later = begin(other, clients[1:2])
        assert kinds(of(later.training_id, 2)) == ["training_started", "round_started"]
        clients[1].submit(later.training_id, model_file(1))
        last = of(later.training_id, 3)
        assert kinds(last) == ["update_accepted", "round_closed", "training_finished"]
        events.cancel()
        actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=before.training_id, force=True))
        cursors = {before.training_id: 1, later.training_id: last[0].sequence}
        events = viewer.subscribe(resume_after_sequence=cursors)
        resumed: dict[str, list[Any]] = {training_id: [] for training_id in cursors}
        while sum(map(len, resumed.values())) < 4:
            event = next(events)
            resumed.get(event.training_id, []).append(event)
        assert kinds(resumed[before.training_id]) == ["round_started", "training_removed"]
        assert resumed[later.training_id] == last[1:]

    def test_the_removal_of_the_user_ends_it(
        self, admin: Person, actor: Person, clients: list[Person], viewer: Person
    ) -> None:
        made = begin(actor, clients[:1])
        streams = [viewer.subscribe(made.training_id), viewer.subscribe()]
        admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=viewer.user_id))
        for stream in streams:
            with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
                list(stream)

    def test_it_is_no_presence_of_a_participant(self, actor: Person, clients: list[Person], viewer: Person) -> None:
        made = begin(actor, clients[:1], cohort={"min_available": 1})
        events = viewer.subscribe(made.training_id)
        found = look(actor, made.training_id).round
        assert (found.state, found.num_connected) == (round_pb2.ROUND_STATE_PENDING, 0)
        assert [one.user_id for one in found.not_connected] == [clients[0].user_id]
        connected = clients[0].subscribe(made.training_id)
        assert kinds(events.next(2)) == ["training_started", "round_started"]
        with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "without session_id"):
            next(viewer.subscribe(made.training_id, session_id=new_id()))
        connected.cancel()


class TestRounds:
    def test_participants_in_pages(self, actor: Person, clients: list[Person], viewer: Person) -> None:
        made = begin(actor, clients)
        clients[0].submit(made.training_id, model_file(1))
        whole = look(actor, made.training_id).round
        assert [one.arrived for one in whole.participants] == [False, False, True]
        found, request = [], {"round": 0, "page_size": 2}
        answer = look(viewer, made.training_id, **request)
        while True:
            assert answer.round.num_participants == 3
            found += answer.round.participants
            if not answer.next_page_token:
                break
            answer = look(viewer, made.training_id, page_token=answer.next_page_token, **request)
        assert [one.user_id for one in found] == [one.user_id for one in whole.participants]

    def test_pages_of_a_round_that_has_gone_on(self, actor: Person, clients: list[Person]) -> None:
        made = begin(actor, clients, target_num_updates=2)
        first = look(actor, made.training_id, page_size=1)
        events = actor.subscribe(made.training_id)
        for client in clients:
            client.submit(made.training_id, model_file(1))
        events.next(5)
        assert look(actor, made.training_id).round.number == 1
        rest = look(actor, made.training_id, round=0, page_token=first.next_page_token)
        ids = [one.user_id for one in (*first.round.participants, *rest.round.participants)]
        assert sorted(ids) == sorted(client.user_id for client in clients)
        assert rest.round.state == round_pb2.ROUND_STATE_DONE
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "round: is required with a page_token"):
            look(actor, made.training_id, page_token=first.next_page_token)

    def test_a_request_that_is_not_valid(self, actor: Person, clients: list[Person]) -> None:
        made = begin(actor, clients[:1])
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "view: is 9; known are ROUND_VIEW_FULL"):
            look(actor, made.training_id, view=9)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "page_size"):
            look(actor, made.training_id, page_size=-1)
        foreign = round_pb2.GetRoundsRequest(training_id=made.training_id, page_token="WyJhIl0=")
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "page_token: is not a next_page_token of this list"):
            actor.rounds.GetRounds(foreign)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "page_token: is not a next_page_token of this list"):
            look(actor, made.training_id, round=0, page_token="WzEsIDcsICJhIl0=")

    def test_summaries(self, actor: Person, clients: list[Person], viewer: Person) -> None:
        made = begin(actor, clients, target_num_updates=2, metric_names=["loss"])
        whole = look(actor, made.training_id).round
        summary = look(viewer, made.training_id, view="ROUND_VIEW_SUMMARY").round
        for name in ("participants", "forecast_end_time"):
            whole.ClearField(name)
        assert summary == whole
        events = actor.subscribe(made.training_id)
        for client in clients:
            client.submit(made.training_id, model_file(1), metrics={"loss": 0.5})
        events.next(6)
        asked = round_pb2.GetRoundsRequest(training_id=made.training_id, page_size=1)
        first = viewer.rounds.GetRounds(asked)
        asked.page_token = first.next_page_token
        second = viewer.rounds.GetRounds(asked)
        rounds = [*first.rounds, *second.rounds]
        assert [one.number for one in rounds] == [1, 0]
        assert [one.state for one in rounds] == [round_pb2.ROUND_STATE_OPEN, round_pb2.ROUND_STATE_DONE]
        assert not second.next_page_token
        assert rounds[0] == look(viewer, made.training_id, view="ROUND_VIEW_SUMMARY").round

    def test_a_pending_round_and_a_training_without_rounds(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=[clients[0].user_id], cohort={"min_available": 1})
        asked = round_pb2.GetRoundsRequest(training_id=made.training_id)
        assert not actor.rounds.GetRounds(asked).rounds
        actor.start(made.training_id)
        (pending,) = actor.rounds.GetRounds(asked).rounds
        assert pending.state == round_pb2.ROUND_STATE_PENDING
        assert pending.waiting_for == look(actor, made.training_id).round.waiting_for
        assert pending.num_registered == 1
        with fails_with("PERMISSION_DENIED", "NOT_ACTOR"):
            clients[0].rounds.GetRounds(asked)
