"""What pages say and what forms do, for each role; how many subscriptions a dashboard has; what it is made of."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fedround_client.dashboard
from calls import model_file, new_id, until
from dashboard.conftest import People
from dashboard.visitor import Served, Visitor, serving
from fedround.v1 import round_pb2, training_pb2
from fedround_client.dashboard.reader import Reader
from fedround_client.dashboard.words import length
from servers import Server

VENDOR = Path(fedround_client.dashboard.__file__).parent / "static/vendor"
VENDORED = {
    "htmx-2.0.11.min.js": "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
    "uplot-1.6.32.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
TABS = ("", "/participants", "/rounds", "/versions", "/configuration")


@pytest.fixture(scope="module")
def training_id(people: People) -> str:
    """A training with a version; its second round is open, and one of two updates is in."""
    made = people.training(name="a study", target_num_updates=2, description="line 1\nline 2")
    people.actor.start(made)
    events = people.actor.subscribe(made)
    for number, client in enumerate(people.clients):
        client.submit(made, model_file(number + 1), num_examples=10 * (number + 1), metrics={"loss": 0.5})
    next(event for event in events if event.HasField("round_closed"))
    people.clients[0].submit(made, model_file(3), 1)
    return made


def visitor_of(served: Served, token: str) -> Visitor:
    visitor = served.visitor()
    assert visitor.sign_in(token).status == 303
    return visitor


@pytest.mark.parametrize("end", [*TABS, "/rounds/0", "/versions/0", "/versions/1"])
def test_a_viewer_reads_everything(served: Served, people: People, training_id: str, end: str) -> None:
    answer = visitor_of(served, people.viewer.token).get(f"/trainings/{training_id}{end}")
    assert answer.status == 200
    assert "a study" in answer.text
    expected = {
        "": "Round 2 of 2 open training 1 of 2 updates",
        "/participants": "site 2 not connected",
        "/rounds": "Round 1 training done 0 2 of 2",
        "/rounds/0": "site 1 arrived",
        "/versions": "Version 1 last",
        "/versions/1": "site 2 1 20 20/30",
        "/versions/0": "no update made it",
    }
    assert expected.get(end, "FedAvg") in answer.text


def test_pages_of_charts_have_values(served: Served, people: People, training_id: str) -> None:
    charts = json.loads(visitor_of(served, people.viewer.token).get(f"/trainings/{training_id}/charts").body)["charts"]
    found = {chart["name"]: chart["series"] for chart in charts}
    assert found["sent with updates loss"] == {"loss": [0.5]}
    assert found["share"]["largest"] == [pytest.approx(2 / 3)]
    assert len(found["durations"]["training"]) == 1


def test_a_participant_reads_its_trainings(served: Served, people: People, training_id: str) -> None:
    visitor = visitor_of(served, people.clients[0].token)
    assert "a study" in visitor.get("/").text
    page = visitor.get(f"/trainings/{training_id}")
    assert "Who is missing is shown to the actor and to viewers" in page.text
    assert "site 2" not in page.text
    assert "Overview Versions Configuration" in page.text
    versions = visitor.get(f"/trainings/{training_id}/versions")
    assert "Version 1" in versions.text
    assert "/versions/1" not in versions.body
    assert visitor.get(f"/trainings/{training_id}/rounds").status == 403
    assert visitor.get("/users").status == 403


@pytest.mark.parametrize("action", ["start", "stop", "pause", "resume", "register", "remove"])
def test_a_viewer_cannot_steer(served: Served, people: People, training_id: str, action: str) -> None:
    visitor, path = visitor_of(served, people.viewer.token), f"/trainings/{training_id}"
    page = visitor.get(path)
    assert f"{path}/{action}" not in page.body
    assert "Only the actor" in visitor.get(f"{path}/{action}").text
    answer = visitor.post(f"{path}/{action}", {"csrf": page.field("csrf"), "user": people.clients[0].user_id})
    assert answer.status in (403, 404)
    assert 'role="alert"' in answer.body
    training = people.actor.get(training_id)
    assert (training.stopped, training.paused, training.num_participants) == (False, False, 2)


def test_labels_are_for_admins(served: Served, people: People) -> None:
    visitor, path = visitor_of(served, people.actor.token), f"/users/{people.clients[0].user_id}"
    answer = visitor.post(path, {"csrf": visitor.get("/").field("csrf"), "labels": "a=b"})
    assert answer.status == 403


@pytest.mark.parametrize("path", ["/trainings/{}", "/trainings/{}/rounds", "/users/{}", "/nothing", "/trainings/x"])
def test_what_does_not_exist_is_not_found(served: Served, people: People, path: str) -> None:
    answer = visitor_of(served, people.admin.token).get(path.format(new_id()))
    assert answer.status == 404
    assert 'role="alert">T' in answer.body  # as a sentence, also where the server's message begins with a small letter
    assert "Not found" in answer.text


@pytest.mark.parametrize("number", ["x", "-1", "4294967295", "4294967296", "9" * 5000])
@pytest.mark.parametrize("kind", ["rounds", "versions"])
def test_numbers_that_do_not_exist_are_not_found(
    served: Served, people: People, training_id: str, kind: str, number: str
) -> None:
    assert visitor_of(served, people.actor.token).get(f"/trainings/{training_id}/{kind}/{number}").status == 404


def test_any_text_is_a_page_of_registered_participants(served: Served, people: People) -> None:
    visitor, made = visitor_of(served, people.actor.token), people.training(name="pages of many digits")
    assert "site 1" in visitor.get(f"/trainings/{made}/participants?page={'9' * 5000}").text
    assert "site 1" in visitor.get(f"/trainings/{made}/participants?page=x").text


def test_a_page_that_was_loading_when_its_visitor_signed_out_asks_to_sign_in(
    served: Served, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visitor_of(served, people.admin.make(people.server.address, "VIEWER").token)
    trainings = Reader.trainings

    def signed_out_meanwhile(reader: Reader, page_token: str = "") -> Any:
        served.dashboard.sessions.end_account(reader.account)
        return trainings(reader, page_token)

    monkeypatch.setattr(Reader, "trainings", signed_out_meanwhile)
    assert visitor.get("/").status == 303


def test_a_training_that_was_not_started_lists_who_is_registered(served: Served, people: People) -> None:
    made = people.training(name="later")
    visitor = visitor_of(served, people.actor.token)
    assert "2 participants are registered" in visitor.get(f"/trainings/{made}").text
    assert "site 1" in visitor.get(f"/trainings/{made}/participants").text
    assert "Start Register clients Remove clients" in visitor.get(f"/trainings/{made}").text


def test_who_sent_nothing_in_a_round_that_is_done_is_not_shown_as_working(served: Served, people: People) -> None:
    made = people.training(name="one is enough", round_policy={"min_updates": 1})
    people.actor.start(made)
    events = people.actor.subscribe(made)
    with ExitStack() as stack:
        stack.callback(people.clients[1].subscribe(made).cancel)
        people.clients[0].submit(made, model_file(1))
        next(event for event in events if event.HasField("round_closed"))
        visitor = visitor_of(served, people.viewer.token)
        assert "site 2 nothing sent" in visitor.get(f"/trainings/{made}/rounds/0").text
        assert "1 match" in visitor.get(f"/trainings/{made}/rounds/0?state=nothing+sent").text
        assert "site 2 nothing sent last seen" in visitor.get(f"/trainings/{made}").text


def test_large_numbers_are_in_groups(served: Served, people: People) -> None:
    made = people.training(name="long", target_num_updates=1_000_000)
    people.actor.start(made)
    visitor = visitor_of(served, people.viewer.token)
    page = visitor.get(f"/trainings/{made}")
    assert "version 0 of 1,000,000" in page.text
    assert "Round 1 of 1,000,000" in page.text
    assert "1 of 1,000,000 · 0 of 2 in" in visitor.get("/").text


def test_a_failed_training_says_why(served: Served, people: People) -> None:
    made = people.actor.create(name="fails", client_ids=[people.clients[0].user_id]).training_id
    people.actor.start(made)
    failure = round_pb2.ReportFailureRequest(training_id=made, round=0, reason="DISK_FULL", message="no <b>space</b>")
    people.clients[0].rounds.ReportFailure(failure)
    page = visitor_of(served, people.actor.token).get(f"/trainings/{made}")
    assert "failed" in page.text
    assert "PARTICIPANTS_FAILED" in page.text
    assert "no &lt;b&gt;space&lt;/b&gt;" in page.body


def test_without_a_server_the_page_says_so(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server, serving(server) as served:
        visitor = visitor_of(served, server.admin_token)
        server.stop()
        answer = visitor.get("/")
        server.start()
        assert answer.status == 503
        assert "No connection to the server" in answer.text
        assert visitor.get("/").status == 200


def test_tabs_share_a_subscription_which_ends_with_the_last(served: Served, people: People, training_id: str) -> None:
    feeds, path = served.dashboard.feeds, f"/trainings/{training_id}/live"
    until(lambda: not feeds.num_feeds)
    one, other = visitor_of(served, people.viewer.token), visitor_of(served, people.viewer.token)
    with one.stream(path) as first:
        assert first.next()[0] == "live"
        with other.stream(path) as second, one.stream(path) as third:
            assert second.next()[0] == third.next()[0] == "live"
            assert (feeds.num_feeds, feeds.num_streams) == (1, 3)
            with visitor_of(served, people.actor.token).stream(path) as of_another_token:
                assert of_another_token.next()[0] == "live"
                assert feeds.num_feeds == 2
        until(lambda: feeds.num_streams == 1)
        assert feeds.num_feeds == 1
    until(lambda: not feeds.num_feeds)


def test_one_token_has_a_part_of_the_streams(
    served: Served, people: People, training_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: not served.dashboard.feeds.num_feeds)
    monkeypatch.setattr("fedround_client.dashboard.feed.MAX_ACCOUNT_STREAMS", 2)
    monkeypatch.setattr("fedround_client.dashboard.feed.MAX_ACCOUNT_FEEDS", 1)
    visitor, path = visitor_of(served, people.viewer.token), f"/trainings/{training_id}/live"
    with visitor.stream(path) as first:
        assert first.next()[0] == "live"
        with visitor.stream("/live") as of_another_page:
            assert of_another_page.next()[0] == "busy"
        with visitor.stream(path) as second, visitor.stream(path) as third:
            assert (second.next()[0], third.next()[0]) == ("live", "busy")
            with visitor_of(served, people.actor.token).stream(path) as of_another_token:
                assert of_another_token.next()[0] == "live"


def test_a_stream_has_what_changed_and_ends_with_the_training(served: Served, people: People) -> None:
    made = people.training(name="short")
    with visitor_of(served, people.viewer.token).stream(f"/trainings/{made}/live") as stream:
        first = read(stream)
        assert set(first["fragments"]) == {"training-state", "training-actions", "round-now"}
        people.actor.start(made)
        people.clients[0].submit(made, model_file(1))
        until(lambda: "1 of 2 updates have arrived" in read(stream)["says"])
        stop = training_pb2.RemoveTrainingRequest(training_id=made, force=True)
        people.actor.trainings.RemoveTraining(stop)
        last: dict[str, Any] = {}
        until(lambda: last.update(read(stream)) or last["gone"])  # type: ignore[func-returns-value]
        assert stream.next()[0] == "over"


def read(stream: Any) -> dict[str, Any]:
    name, data = stream.next()
    assert name == "live"
    found: dict[str, Any] = json.loads(data)
    return found


def test_lengths_of_rounds_are_finer() -> None:
    assert [length(seconds) for seconds in (0.0402, 0.9996, 1.44, 9.96, 61)] == [
        *("40 ms", "1.0 s", "1.4 s", "10 s", "1 min 1 s"),
    ]
    assert [length(seconds) for seconds in (None, float("nan"))] == ["", ""]


def test_vendored_files_are_those_that_were_published() -> None:
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.min.*")}
    assert digests == VENDORED
    assert {path.name for path in VENDOR.glob("*LICENSE")} == {"htmx.LICENSE", "uplot.LICENSE"}
