"""Replicas are killed at the points at which they do something for, or with, each other."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from calls import kinds, model_file, until
from e2e.test_several_servers import has, is_done, recorded, users
from replicas import person, replica, replicas

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
]


def of(verb: str, *more: str) -> list[str]:
    return [*(f"replica.{verb}.{step}" for step in ("begun", "written", "committed")), *more]


@pytest.mark.parametrize("point", of("take_over", "round.taken_over"))
def test_while_one_takes_over_what_another_has_left(tmp_path: Path, database: str, point: str) -> None:
    with (
        replica(tmp_path, 0, database, failpoint="aggregation.found") as first,
        replica(tmp_path, 1, database, failpoint=point) as second,
    ):
        found = users([first, second])
        training = found.start()
        found.client[0].submit(training.training_id, model_file(1))
        first.wait()
        second.wait()
        second.failpoint = ""
        second.start()
        until(lambda: is_done(found.actor[1], training.training_id))
        actions = [action for action, _ in recorded(database, training.training_id)]
        assert (actions.count("version_made"), actions.count("round_done")) == (1, 1)
        first.failpoint = ""
        first.start()


@pytest.mark.parametrize("point", of("publish_presence", "replica.told"))
def test_while_one_tells_who_is_connected(tmp_path: Path, database: str, point: str) -> None:
    with replica(tmp_path, 0, database) as first, replica(tmp_path, 1, database, failpoint=point) as second:
        found = users([first])
        training = found.start()
        with suppress(grpc.RpcError):
            person(second, first.admin_token)
        second.wait()
        events = found.client[0].subscribe(training.training_id)
        found.client[0].submit(training.training_id, model_file(1))
        assert kinds(list(events)) == ["round_started", "round_closed", "training_finished"]
        second.failpoint = ""
        second.start()


@pytest.mark.parametrize("point", of("give_up", "replica.given_up"))
def test_while_one_leaves_its_rounds_to_others(tmp_path: Path, database: str, point: str) -> None:
    with replica(tmp_path, 0, database) as first, replica(tmp_path, 1, database, failpoint=point) as second:
        found = users([first, second])
        training = found.start()
        second.stop()
        found.client[0].submit(training.training_id, model_file(1))
        until(lambda: is_done(found.actor[0], training.training_id))
        second.failpoint = ""
        second.start()


@pytest.mark.parametrize("point", ["replica.joined", "start.claimed"])
def test_while_one_starts(tmp_path: Path, database: str, point: str) -> None:
    killed = replica(tmp_path, 0, database, failpoint=point)
    with pytest.raises(AssertionError), killed:
        pass
    killed.failpoint = ""
    with killed, replica(tmp_path, 1, database) as second:
        found = users([killed, second])
        training = found.start(1)
        found.client[0].submit(training.training_id, model_file(1))
        until(lambda: is_done(found.actor[1], training.training_id))


def test_both_and_start_again(tmp_path: Path, database: str) -> None:
    with replicas(tmp_path, database) as servers:
        found = users(servers)
        training = found.start(target_num_updates=3)
        for number in range(3):
            submit = found.client[number % 2].submit
            submit(training.training_id, model_file(number), number)
            for server in servers:
                server.kill()
            for server in servers:
                server.start()
            until(partial(has, found.actor, training.training_id, number + 1))
        actions = [action for action, _ in recorded(database, training.training_id)]
        assert (actions.count("version_made"), actions.count("round_done")) == (3, 3)
