"""Commands about replays, side branches and evaluations, typed against a real server."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import Federation, federation
from e2e.test_command import forked_fedround
from servers import Server


def participant(number: int) -> tuple[Any, ...]:
    """Trains by adding its number + 1, and reports the first number of the model."""

    def train(model: Any, round: fr.Round) -> Any:
        return fr.Update({"w": model["w"] + np.float32(number + 1)}, 10, local_steps=2)

    def evaluate(model: Any, round: fr.Round) -> Any:
        return {"first": float(model["w"][0]), "loss": 0.5}, 10

    return train, evaluate


@pytest.fixture(scope="module")
def group(server: Server) -> Iterator[Federation]:
    with federation(server, 3) as made:
        yield made


@pytest.fixture(scope="module")
def actor(server: Server, group: Federation) -> Callable[..., str]:
    def call(*arguments: object, code: int = 0) -> str:
        ended = forked_fedround(server.address, group.actor_token, *arguments)
        assert ended.returncode == code, ended.stderr
        return ended.stdout if code == 0 else ended.stdout + ended.stderr

    return call


@pytest.fixture(scope="module")
def training(group: Federation) -> Any:
    aggregation = fr.aggregate(shadows=[fr.Median(), fr.FedNova(), fr.FedAdam(0.5)])
    model = {"w": np.zeros(2, np.float32)}
    return group.run(participant, model, target_num_updates=3, aggregation=aggregation)


def site(group: Federation, number: int) -> str:
    return group.actor.get_user(group.ids[number]).name


def test_a_whole_training_is_replayed(actor: Callable[..., str], training: Any) -> None:
    header, *rows = actor("training", "replay", training.training_id).splitlines()
    assert header.split()[:4] == ["ROUND", "VERSION", "UPDATES", "RECORDED"]
    assert [row.split()[:3] for row in rows] == [[str(number), str(number), "3"] for number in (1, 2, 3)]
    assert all("the same" in row for row in rows)
    with_round = actor("training", "replay", training.training_id, 2)
    assert len(with_round.splitlines()) == 2


def test_a_training_is_replayed_without_a_participant(
    actor: Callable[..., str], group: Federation, training: Any
) -> None:
    without = site(group, 2)
    shown = actor("training", "replay", training.training_id, "--without", without, "--format", "json")
    found = json.loads(shown)
    assert [one["result"] for one in found["versions"]] == ["exact", "an estimate", "an estimate"]
    # 1.5 a round instead of 2, in two elements.
    assert [one["distance"] for one in found["versions"]] == pytest.approx([0.5 * 2**0.5 * n for n in (1, 2, 3)])
    branch = group.actor.download_model(found["model_id"])
    assert branch["w"].tolist() == [4.5, 4.5]
    model = group.actor.get_model(found["model_id"])
    assert (model.name, model.version) == (f"t without {without}", 3)
    table = actor("training", "replay", training.training_id, "--without", without, "--model-name", "mine")
    assert "an estimate" in table
    assert [one.version for one in group.actor.models() if one.name == "mine"] == [3]


def test_the_contribution_of_each_participant_is_a_table(
    actor: Callable[..., str], group: Federation, training: Any
) -> None:
    before = len(list(group.actor.models()))
    call = ("training", "contributions", training.training_id)
    rows = json.loads(actor(*call, "--counterfactual", "--format", "json"))
    assert {row["user_id"] for row in rows} == set(group.ids)
    assert {(row["rounds"], row["examples"]) for row in rows} == {(3, 30)}
    assert [row["share"] for row in rows] == pytest.approx([1 / 3] * 3)
    distances = {row["user_id"]: row["distance"] for row in rows}
    # Without the first, 2.5 a round instead of 2; without the last, 1.5; the second is the mean of the others.
    assert [distances[user_id] for user_id in group.ids] == pytest.approx([1.5 * 2**0.5, 0, 1.5 * 2**0.5])
    assert len(list(group.actor.models())) == before
    header = actor(*call).splitlines()[0]
    assert header.split() == ["PARTICIPANT", "USER_ID", "ROUNDS", "EXAMPLES", "SHARE", "COSINE"]


def test_shadows_are_listed_and_evaluated(actor: Callable[..., str], group: Federation, training: Any) -> None:
    rows = json.loads(actor("training", "shadows", training.training_id, "--format", "json"))
    assert [(row["shadow"], row["aggregation"], row["version"]) for row in rows] == [
        (1, "median", 3),
        (2, "FedNova", 3),
        (3, "FedAdam(learning_rate=0.5, beta1=0.9, beta2=0.99, tau=0.001)", 3),
    ]
    assert [row["model_id"] for row in rows] == list(training.shadow_model_ids)
    shown = actor("training", "show", training.training_id)
    assert "shadows: median, FedNova" in shown
    assert rows[0]["model_id"] in shown
    # Those who were asked for steps and losses had them.
    chosen = [word for number in range(3) for word in ("--client", site(group, number))]
    ends = [group.take_part(number, *participant(number)) for number in range(3)]
    evaluated = actor(
        "training", "evaluate", "--model", rows[0]["model_id"], "--model-version", 2, "--metric", "first", *chosen
    )
    for end in ends:
        end.result(60)
    header, row = evaluated.splitlines()
    found = dict(zip(header.split(), row.replace(" of ", "/").split(), strict=True))
    assert (found["ROUND"], found["KIND"], found["first"], found["OVER"]) == ("1", "EVALUATE", "4", "3/3")


def test_a_training_says_how_many_updates_it_keeps(actor: Callable[..., str], group: Federation, tmp_path: Any) -> None:
    (tmp_path / "m.safetensors").write_bytes(fr.to_safetensors({"w": np.zeros(2, np.float32)}))
    options = ["--name", "few", "--target-num-updates", 2, "--keep-update-rounds", 1, "--shadow", "krum:f=0"]
    shown = actor("training", "create", tmp_path / "m.safetensors", *options, "--client", group.ids[0])
    assert "of the last round" in shown
    made = next(one for one in group.actor.trainings() if one.spec.name == "few")
    assert made.spec.keep_update_rounds == 1
    end = group.take_part(0, *participant(0))
    group.actor.start_training(made.training_id)
    end.result(60)
    lines = actor("training", "replay", "few").splitlines()
    assert "not replayed" in lines[1]
    assert "keep_update_rounds is 1" in " ".join(lines)
    assert "the same" in lines[-1]
    assert "keep_update_rounds" in actor("training", "replay", "few", "--without", group.ids[0], code=1)
