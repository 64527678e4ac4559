"""What a viewer sees with the SDK and the command."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

import fedround_client as fr
import forked
from e2e.federation import Federation, federation
from fedround.v1 import round_pb2
from servers import Server

PAGE = 2


@pytest.fixture(scope="module")
def group(server: Server) -> Iterator[Federation]:
    """Two trainings: one has had two rounds with five participants, the other one has not been started."""
    with federation(server, 5) as group:
        made = group.run(
            lambda number: (lambda model, _: (model, 1 + number), lambda model, _: ({"loss": 0.5}, 1)),
            {"w": np.zeros(2, np.float32)},
            target_num_updates=2,
            metric_names=["loss"],
        )
        assert made.model_version == 2
        group.actor.create_training({"w": np.zeros(2, np.float32)}, name="later", target_num_updates=1)
        yield group


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    with fr.connect(server.address, server.admin_token) as admin:
        return admin.create_user("dashboard", role="VIEWER")[1]


@pytest.fixture
def viewer(server: Server, group: Federation, token: str) -> Iterator[fr.Client]:
    with fr.connect(server.address, token) as client:
        yield client


def test_all_trainings(viewer: fr.Client, group: Federation) -> None:
    assert [one.spec.name for one in viewer.trainings()] == ["later", "t"]
    assert list(viewer.trainings("VIEWER")) == list(viewer.trainings())
    assert list(viewer.trainings("ACTOR")) == list(viewer.trainings("CLIENT")) == []
    assert {one.actor_name for one in viewer.trainings()} == {group.actor.myself().name}
    with pytest.raises(fr.RoleRequired, match="yours is ACTOR"):
        list(group.actor.trainings("VIEWER"))
    assert [one.spec.name for one in group.actor.trainings()] == ["later", "t"]


def test_rounds_and_their_participants_in_pages(
    viewer: fr.Client, group: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_id = next(one.training_id for one in viewer.trainings() if one.spec.name == "t")
    whole = viewer.get_round(training_id, 0)
    assert {one.user_id for one in whole.participants} == set(group.ids)
    summary = viewer.get_round(training_id, 0, summary=True)
    assert (len(summary.participants), summary.num_participants, summary.done_time) == (0, 5, whole.done_time)
    monkeypatch.setattr("fedround_client.round.PAGE_SIZE", PAGE)
    monkeypatch.setattr("fedround_client.rpc.PAGE_SIZE", PAGE)
    assert list(viewer.round_participants(training_id, 0)) == list(whole.participants)
    assert len(list(viewer.round_participants(training_id))) == 5
    rounds = list(viewer.rounds(training_id))
    assert [one.number for one in rounds] == [3, 2, 1, 0]
    assert {one.state for one in rounds} == {round_pb2.ROUND_STATE_DONE}
    with pytest.raises(fr.NotActor), group.connect(0) as client:
        list(client.rounds(training_id))


def test_a_viewer_waits_watches_and_takes_no_part(viewer: fr.Client) -> None:
    training_id = next(one.training_id for one in viewer.trainings() if one.spec.name == "t")
    assert viewer.wait(training_id).model_version == 2
    assert [event.WhichOneof("payload") for event in viewer.watch(training_id)] == ["training_finished"]
    with pytest.raises(fr.RoleRequired, match="a viewer takes part in no training"):
        viewer.participate(lambda model, _: (model, 1))


def test_the_commands_that_read(server: Server, group: Federation, token: str) -> None:
    def run(*arguments: object, returncode: int = 0) -> str:
        ended = forked.run("--server", server.address, *arguments, environment={"FEDROUND_TOKEN": token})
        assert ended.returncode == returncode, ended.stderr
        return ended.stdout + ended.stderr

    names = [one.name for one in group.actor.users(role="CLIENT")]
    assert all(name in run("training", "list", "--role", "viewer") for name in ("later", "t"))
    assert all(name in run("training", "show", "t") for name in names)
    table = run("training", "rounds", "t").splitlines()
    assert table[0].split() == ["ROUND", "KIND", "STATE", "VERSION", "UPDATES", "OPENED", "SECONDS"]
    assert [line.split()[:5] for line in table[1:]] == [
        ["4", "EVALUATE", "DONE", "2", "5/5"],
        ["3", "TRAIN", "DONE", "1", "5/5"],
        ["2", "EVALUATE", "DONE", "1", "5/5"],
        ["1", "TRAIN", "DONE", "0", "5/5"],
    ]
    (latest,) = json.loads(run("training", "rounds", "t", "--limit", 1, "--format", "json"))
    assert latest["number"] == 3
    assert all(name in run("training", "round", "t", 1) for name in names)
    assert all(name in run("metrics", "t", "--by-reporter") for name in names)
    assert all(name in run("training", "contributions", "t") for name in names)
    assert "finished: version 2" in run("training", "watch", "t")
    assert "yours is VIEWER" in run("training", "start", "later", returncode=1)
    assert "yours is VIEWER" in run("model", "download", "t", returncode=1)
