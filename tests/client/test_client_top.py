"""`fedround top`: rates between two statuses, the screen at different widths, and what programs get."""

import io
import json
from datetime import timedelta
from itertools import islice
from unittest.mock import Mock

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from client.scripted import USER, error_status
from fedround.v1.server_pb2 import (
    CallCount,
    DatabaseStatus,
    DiskStatus,
    GetServerStatusResponse,
    Replica,
    ServerStatus,
)
from fedround.v1.training_pb2 import Training, TrainingSpec
from fedround.v1.user_pb2 import GetMyselfResponse, User
from fedround_client.command.top import _views
from fedround_client.command.top_rates import DiskTrend, rates_between
from fedround_client.command.top_view import View, bar, refusal
from fedround_client.errors import FedroundError, ServerUnavailable

GB = 10**9


def at(seconds: float, *, start: int = 0, **fields: object) -> ServerStatus:
    time = Timestamp()
    time.FromNanoseconds(round(seconds * 1e9))
    disk = DiskStatus(total_bytes=100 * GB, free_bytes=40 * GB, min_free_bytes=GB, max_stored_bytes=1000 * GB)
    return ServerStatus(
        **{"version": "1.2", "start_time": Timestamp(seconds=start), "current_time": time, "disk": disk, **fields}
    )


def calls(**counts: int) -> list[CallCount]:
    return [CallCount(method="fedround.v1.RoundService/SubmitUpdate", code=code, count=n) for code, n in counts.items()]


BEFORE = at(100, calls=calls(OK=10), received_bytes=1000, database=DatabaseStatus(commits=5, commit_seconds=1))
NOW = at(
    102,
    calls=calls(OK=50, INTERNAL=2, CANCELLED=2),
    received_bytes=5_001_000,
    updates_accepted=3,
    updates_rejected={"UPDATE_NORM": 4},
    database=DatabaseStatus(kind="sqlite", commits=25, commit_seconds=1.1),
    cpu_seconds=1,
    subscriptions=1234,
    running_trainings=1,
)
TRAINING = Training(
    spec=TrainingSpec(name="digits\x1b[2J of all sites of the hospital", target_num_updates=5),
    state=2,
    updates_expected=3,
    actor_name="alice",
)


def rendered(view: View, width: int) -> str:
    console = Console(width=width, height=30, file=io.StringIO(), force_terminal=True, record=True, markup=False)
    console.print(view)
    return console.export_text()


def test_rates_are_differences_by_the_servers_clock() -> None:
    rates = rates_between(BEFORE, NOW)
    assert (rates.seconds, rates.calls, rates.failed_calls) == (2, 22, 1)
    assert rates.methods == {"fedround.v1.RoundService/SubmitUpdate": 22}
    assert (rates.received_bytes, rates.updates, rates.rejected) == (2_500_000, 1.5, {"UPDATE_NORM": 2})
    assert (rates.commits, rates.cpu) == (10, 0.5)
    assert rates.commit_seconds == pytest.approx(0.005)


def test_after_a_restart_rates_count_from_the_start() -> None:
    rates = rates_between(NOW, at(204, start=200, received_bytes=4000))
    assert (rates.seconds, rates.received_bytes, rates.calls) == (4, 1000, 0)


@pytest.mark.parametrize("width", [80, 200])
def test_the_screen_fits_and_shows_everything(width: int) -> None:
    view = View("127.0.0.1:1", NOW, rates_between(BEFORE, NOW), timedelta(hours=30), [TRAINING])
    text = rendered(view, width)
    assert all(len(line) <= width for line in text.splitlines())
    for words in (
        "fedround 1.2 at 127.0.0.1:1, up 1 min 42 s",
        "22.0/s, 1.0/s failed",
        "2.5 MB/s in, 0 B/s out",
        "subscriptions: 1,234",
        "1.5/s accepted, 2.0/s rejected: UPDATE_NORM 2.0/s",
        "CPU 50% of a core",
        "10.0/s commits, 5.0 ms on average",
        "[############--------] 40.0 GB free of 100 GB",
        "models are refused below 1.0 GB free, updates below 500 MB, in 1 d 6 h",
        "0 of 3",
    ):
        assert words in text, words
    assert "\x1b[2J" not in text
    assert ("RoundService/SubmitUpdate" in text, "alice" in text) == (width == 200, width == 200)


REPLICAS = [
    Replica(replica_id="1", name="vm:52001", version="0.1.0"),
    Replica(replica_id="2", name="vm:52002\x1b[2J", version="0.2.0"),
]


def test_replicas_are_shown_with_their_versions() -> None:
    status = at(102, replicas=REPLICAS, replica_id="1")
    view = View("here:1", status, rates_between(BEFORE, status))
    screen = rendered(view, 200)
    assert "at here:1 (replica vm:52001), up" in screen
    for text in (screen, view.line()):
        assert "vm:52001 (0.1.0), vm:52002" in text
        assert "(0.2.0)" in text
        assert "\x1b[2J" not in text


def test_a_server_without_others_has_no_replicas() -> None:
    assert "replica" not in View("here:1", NOW, rates_between(BEFORE, NOW)).line()
    alone = at(102, replicas=REPLICAS[:1], replica_id="1")
    assert "(replica" not in rendered(View("here:1", alone, rates_between(BEFORE, alone)), 200)


def gone() -> FedroundError:
    return ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "is gone")


def scripted(*statuses: ServerStatus | FedroundError) -> Mock:
    client = Mock()
    client.server_status.side_effect = statuses
    client.trainings.return_value = []
    return client


def test_of_several_servers_the_first_that_answers_is_asked_and_then_the_next() -> None:
    views = _views({"a:1": scripted(gone(), gone()), "b:1": scripted(BEFORE, NOW, gone(), BEFORE, NOW)}, 0.01)
    assert [(view.address, view.problem) for view in islice(views, 3)] == [
        ("b:1", ""),
        ("b:1", "reconnecting: UNAVAILABLE: is gone"),
        ("b:1", ""),
    ]
    views = _views({"a:1": scripted(BEFORE, NOW, gone()), "b:1": scripted(BEFORE, NOW)}, 0.01)
    assert [view.address for view in islice(views, 2)] == ["a:1", "b:1"]


def test_without_a_server_that_answers_it_ends() -> None:
    with pytest.raises(ServerUnavailable):
        next(_views({"a:1": scripted(gone()), "b:1": scripted(gone())}, 0.01))


def test_a_problem_is_shown_with_the_last_status() -> None:
    view = View("127.0.0.1:1", NOW, rates_between(BEFORE, NOW), problem="reconnecting: the server is gone")
    assert "reconnecting: the server is gone" in rendered(view, 80)


@pytest.mark.parametrize(
    ("free", "stored", "words"),
    [
        (2 * GB, 0, ""),
        (GB - 1, 0, "models are refused: less than 1.0 GB free"),
        (GB // 2 - 1, 0, "models and updates are refused: less than 500 MB free"),
        (2 * GB, 1000 * GB, "models are refused: the files have more than 1.0 TB"),
    ],
)
def test_what_is_refused_on_a_full_disk(free: int, stored: int, words: str) -> None:
    limits = {"min_free_bytes": GB, "max_stored_bytes": 1000 * GB}
    assert refusal(DiskStatus(free_bytes=free, stored_bytes=stored, **limits)) == words


def test_a_disk_that_fills_up_has_an_end() -> None:
    trend = DiskTrend()
    assert trend.until(0) is None
    for second in range(0, 40, 10):
        trend.add(at(second, disk=DiskStatus(free_bytes=10 * GB - second * 10**6)))
    assert trend.until(GB) == timedelta(seconds=(9 * GB - 30 * 10**6) / 10**6)
    trend.add(at(50, disk=DiskStatus(free_bytes=10 * GB)))
    assert trend.until(GB) is None


def test_bars() -> None:
    assert bar(DiskStatus(), 4) == "[----]"
    assert bar(DiskStatus(total_bytes=4, free_bytes=1), 4) == "[###-]"


def test_one_look_as_json(server, command) -> None:
    running = command("top", "--once", "--interval", "0.1", "--format", "json")
    server.reply("GetServerStatus", GetServerStatusResponse(status=BEFORE))
    server.reply("GetMyself", GetMyselfResponse(user=User(user_id=USER, role=1)))
    after = at(102, received_bytes=5_001_000)
    server.reply("GetServerStatus", GetServerStatusResponse(status=after))
    result = running.result()
    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["rates"]["received_bytes"] == 2_500_000
    assert found["status"]["received_bytes"] == "5001000"
    assert (found["trainings"], found["full_in_seconds"]) == ([], None)


def test_without_the_role_it_ends(server, command) -> None:
    running = command("top", "--once")
    server.fail("GetServerStatus", error_status(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"))
    result = running.result()
    assert result.exit_code == 1
    assert "ROLE_REQUIRED" in result.stderr
