"""SCAFFOLD and FedDyn with the SDK against a real server: what participants remember, also over restarts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedround_client as fr
from calls import until
from e2e.federation import Federation, federation
from fedround_client.control_store import ControlStore
from fedround_client.tensor_selection import read_file
from fedround_client.tensors import array_sources
from servers import Server

STEPS, RATE, ROUNDS = 3, 0.25, 4
TARGETS = (1.0, 5.0)
CURVATURES = (1.0, 0.5)
Tensors = dict[str, Any]


class Dies(BaseException):
    """The process of the participant ends here."""


def trainer(client: int, seen: list[Any] | None = None) -> Callable[[Tensors, fr.Round], fr.Update]:
    """Gradient steps on a parabola of its own; arrays and tensors alike, and the model is changed in place."""

    def train(model: Tensors, round: fr.Round) -> fr.Update:
        assert round.control is not None
        if seen is not None:
            seen.append((round.number, float(round.control.own["w"][0])))
        for _ in range(STEPS):
            gradients = {"w": CURVATURES[client] * (model["w"] - TARGETS[client])}
            model["w"] -= RATE * round.control.correct(gradients, model)["w"]
        return fr.Update(model, client + 1, local_steps=STEPS, learning_rate=RATE)

    return train


def simulated(rule: Any) -> list[float]:
    """What the papers say: the model after each round."""
    x, c, h, own, made = 0.0, 0.0, 0.0, [0.0, 0.0], []
    for _ in range(ROUNDS):
        local, changes = [], []
        for client in range(2):
            w = x
            for _ in range(STEPS):
                gradient = CURVATURES[client] * (w - TARGETS[client])
                if isinstance(rule, fr.Scaffold):
                    w -= RATE * (gradient - own[client] + c)
                else:
                    w -= RATE * (gradient + rule.alpha * (w - x) - own[client])
            local.append(w)
            if isinstance(rule, fr.Scaffold):
                changes.append((x - w) / (STEPS * RATE) - c)
                own[client] += changes[-1]
            else:
                own[client] -= rule.alpha * (w - x)
        mean = sum(local) / 2
        if isinstance(rule, fr.Scaffold):
            x, c = mean, c + sum(changes) / 2
        else:
            h -= rule.alpha * (mean - x)
            x = mean - h / rule.alpha
        made.append(x)
    return made


def take_part(group: Federation, number: int, train: Any, folder: Path, training_id: str, **more: Any) -> Any:
    with group.connect(number) as client:
        return client.participate(train, training_id=training_id, private_folder=folder, **more)


def start(group: Federation, rule: Any, model: Tensors | None = None, **spec: Any) -> str:
    wanted = {"target_num_updates": ROUNDS, "keep_versions": 100, **spec}
    first = {"w": np.zeros(3, np.float32), "n": np.array(0)} if model is None else model
    made = group.actor.create_training(first, name="t", client_ids=group.ids, aggregation=rule, **wanted)
    group.actor.start_training(made.training_id)
    return made.training_id


def versions(group: Federation, training_id: str) -> list[float]:
    model_id = group.actor.get_training(training_id).model_id
    return [float(group.actor.download_model(model_id, number)["w"][0]) for number in range(1, ROUNDS + 1)]


@pytest.mark.parametrize("rule", [fr.Scaffold(learning_rate=1), fr.FedDyn(alpha=0.5)], ids=["scaffold", "fed_dyn"])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_training_goes_as_the_paper_says(server: Server, tmp_path: Path, rule: Any, framework: Any) -> None:
    model = {"w": torch.zeros(3), "n": torch.tensor(0)} if framework == "torch" else None
    with federation(server, 2) as group:
        training_id = start(group, rule, model)
        ends = [
            group._pool.submit(take_part, group, one, trainer(one), tmp_path, training_id, framework=framework)
            for one in range(2)
        ]
        assert [end.result(60).rounds for end in ends] == [ROUNDS] * 2
        assert versions(group, training_id) == pytest.approx(simulated(rule), rel=1e-5)
        # The training has ended: nothing of it is kept.
        assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("rule", [fr.Scaffold(learning_rate=1), fr.FedDyn(alpha=0.5)], ids=["scaffold", "fed_dyn"])
@pytest.mark.parametrize("place", ["prepare", "accept"])
def test_a_participant_that_dies_goes_on_from_what_counted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Any, place: str
) -> None:
    """Once before its update is sent, and once between the receipt and the file: each time at its second round."""
    original = getattr(ControlStore, place)

    def dies(store: ControlStore, number: int, *more: Any) -> None:
        if number == 1 and store._folder.name.startswith(group.ids[0]) and not deaths:
            if place == "prepare":
                original(store, number, *more)
            deaths.append(number)
            raise Dies
        original(store, number, *more)

    deaths: list[int] = []
    with federation(server, 2) as group:
        monkeypatch.setattr(ControlStore, place, dies)
        training_id = start(group, rule)
        other = group._pool.submit(take_part, group, 1, trainer(1), tmp_path, training_id)
        with pytest.raises(Dies):
            take_part(group, 0, trainer(0), tmp_path, training_id)
        assert deaths == [1]
        take_part(group, 0, trainer(0), tmp_path, training_id)
        other.result(60)
        assert versions(group, training_id) == pytest.approx(simulated(rule), rel=1e-5)


def test_what_was_not_accepted_does_not_count(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies before it sends its update, and comes back when the round is over without it."""
    seen: list[Any] = []
    prepare = ControlStore.prepare

    def dies(*arguments: Any) -> None:
        prepare(*arguments)
        raise Dies

    with federation(server, 2) as group:
        training_id = start(group, fr.Scaffold(), min_updates=1, target_num_updates=2)
        with monkeypatch.context() as patch:
            patch.setattr(ControlStore, "prepare", dies)
            with pytest.raises(Dies):
                take_part(group, 0, trainer(0), tmp_path, training_id)
        assert len(list(tmp_path.rglob("0.pending"))) == 1
        with group.connect(1) as client:
            update = {"w": np.ones(3, np.float32), "n": np.array(0), "control/w": np.ones(3, np.float32)}
            client.submit_update(training_id, 0, update, 1)
        until(lambda: group.actor.get_training(training_id).round == 1)
        take_part(group, 0, trainer(0, seen), tmp_path, training_id)
        assert seen == [(1, 0.0)]


def test_an_update_that_was_lost_counts_once(tmp_path: Path) -> None:
    store = ControlStore(tmp_path / "one.control")

    def left(number: int, value: float) -> None:
        store.prepare(number, array_sources({"w": np.full(2, value)}), b"spec")
        store.accept(number)

    for number in range(4):
        left(number, float(number))
    assert store.load(4, "numpy")["w"].tolist() == [3, 3]
    assert sorted(path.name for path in store._folder.iterdir()) == ["2.safetensors", "3.safetensors"]
    # The round asks anew: it starts from the one before.
    assert store.load(3, "numpy")["w"].tolist() == [2, 2]
    left(3, 7.0)
    assert store.load(4, "numpy")["w"].tolist() == [7, 7]
    store.forget(3)
    assert store.load(4, "numpy")["w"].tolist() == [2, 2]
    assert list(store.undecided(9)) == []


def test_updates_without_weight_change_nothing(server: Server, tmp_path: Path) -> None:
    def idle(model: Tensors, round: fr.Round) -> fr.Update:
        return fr.Update(model, 0)

    with federation(server, 2) as group:
        training_id = start(group, fr.Scaffold())
        other = group._pool.submit(take_part, group, 1, idle, tmp_path, training_id)
        take_part(group, 0, trainer(0), tmp_path, training_id)
        other.result(60)
        # The one that trains is alone, but c has half of its control variate.
        x, c, own, made = 0.0, 0.0, 0.0, []
        for _ in range(ROUNDS):
            w = x
            for _ in range(STEPS):
                w -= RATE * (w - TARGETS[0] - own + c)
            change = (x - w) / (STEPS * RATE) - c
            own, c, x = own + change, c + change / 2, w
            made.append(x)
        assert versions(group, training_id) == pytest.approx(made, rel=1e-5)


def test_without_steps_and_learning_rate_it_says_what_to_return(server: Server, tmp_path: Path) -> None:
    with federation(server, 1) as group:
        training_id = start(group, fr.Scaffold())
        with pytest.raises(ValueError, match=r"local_steps=\.\.\., learning_rate=\.\.\."):
            take_part(group, 0, lambda model, _: (model, 1), tmp_path, training_id)


def test_differences_private_tensors_and_buffers(server: Server, tmp_path: Path) -> None:
    """Control variates are those of trained tensors that are no buffers, and are sent in full beside differences."""
    model = {
        "w": np.zeros(3, np.float32),
        "d": np.zeros(2),
        "head": np.zeros(2, np.float32),
        "bn.running_mean": np.zeros(2, np.float32),
    }
    names: list[Any] = []

    def train(found: Tensors, round: fr.Round) -> fr.Update:
        assert round.control is not None
        names.append(sorted(round.control.infos))
        gradients = round.control.correct(dict.fromkeys(found, np.float32(1)), found)
        return fr.Update(
            {name: one - gradients[name] for name, one in found.items()}, 1, local_steps=1, learning_rate=1
        )

    with federation(server, 1) as group:
        training_id = start(
            group, fr.Scaffold(), model, target_num_updates=2, private=["head"], update_precision="FLOAT16"
        )
        with group.connect(0) as client:
            client.participate(train, training_id=training_id, private_folder=tmp_path)
        assert names == [["d", "w"]] * 2
        made = group.actor.download_model(group.actor.get_training(training_id).model_id)
        assert made["w"].tolist() == [-2.0] * 3
        assert made["d"].tolist() == [-2.0] * 2
    assert read_file(next(tmp_path.glob("*.safetensors")), "numpy")["head"].tolist() == [-2.0] * 2


def test_swag_rounds_are_corrected_and_change_nothing(server: Server, tmp_path: Path) -> None:
    seen: list[Any] = []

    def train(model: Tensors, round: fr.Round) -> fr.Update:
        made = trainer(0)(model, round)
        seen.append((round.kind, round.number, float(round.control.own["w"][0])))  # type: ignore[union-attr]
        return made

    with federation(server, 1) as group:
        swag = fr.Swag(every=1)
        training_id = start(group, fr.Scaffold(), target_num_updates=2, uncertainty=swag)
        take_part(group, 0, train, tmp_path, training_id)
        assert {kind for kind, *_ in seen} == {"TRAIN", "SWAG"}
        own = {number: value for _, number, value in seen}
        # Round 1 collects moments with what round 0 has left, and round 2 trains with the same.
        assert own[0] == 0
        assert own[1] == own[2] != 0
