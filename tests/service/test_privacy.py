"""Differential privacy over a port: budgets, what is shown, what is refused, and secrets that stay secret."""

import math
import os
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import Person, download, fails_with, until
from fedround.v1 import audit_pb2, training_pb2
from servers import MODULE, Server

FIXED = {"clipping": {"fixed": {"norm": 1.0}}}
MODEL = save({"weight": np.zeros(3000, np.float32), "count": np.array(3)})
UPDATE = save({"weight": np.full(3000, 0.5, np.float32), "count": np.array(4)})


def aggregation(
    noise_multiplier: float = 1.0, *, stages: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    stages = FIXED if stages is None else stages
    return {"differential_privacy": {"noise_multiplier": noise_multiplier, **options}, **stages}


def create(actor: Person, clients: list[Person], rounds: int = 5, **spec: Any) -> training_pb2.Training:
    spec = {"aggregation": aggregation(), **spec}
    return actor.create(MODEL, client_ids=[client.user_id for client in clients], target_num_updates=rounds, **spec)


def play(actor: Person, clients: list[Person], made: training_pb2.Training, number: int) -> None:
    for client in clients:
        client.submit(made.training_id, UPDATE, number)
    until(lambda: actor.get(made.training_id).model_version == number + 1)


def test_a_training_shows_what_it_spends_and_ends_before_its_budget_is_overspent(
    actor: Person, clients: list[Person]
) -> None:
    made = create(actor, clients, aggregation=aggregation(epsilon_budget=8))
    assert made.privacy.rounds == 0
    assert made.privacy.epsilon == 0
    assert made.privacy.next_epsilon == pytest.approx(4.37718, abs=1e-5)
    assert (made.privacy.delta, made.privacy.rounds_left) == (1e-5, 2)
    actor.start(made.training_id)
    shown = actor.get(made.training_id).privacy
    assert (shown.rounds, shown.rounds_left) == (1, 1)
    assert shown.epsilon == pytest.approx(4.37718, abs=1e-5)
    assert shown.next_epsilon == pytest.approx(6.57297, abs=1e-5)
    for number in range(2):
        play(actor, clients, made, number)
    found = actor.get(made.training_id)
    assert found.state == training_pb2.TRAINING_STATE_COMPLETED
    assert (found.error.reason, found.model_version) == ("PRIVACY_BUDGET", 2)
    assert (found.privacy.rounds, found.privacy.rounds_left) == (2, 0)
    assert found.privacy.epsilon <= 8 < found.privacy.next_epsilon
    last = list(actor.subscribe(made.training_id))[-1].training_finished
    assert (last.stopped_early, last.reason) == (True, "PRIVACY_BUDGET")
    # A participant may know what is spent of its privacy; lists do not say it.
    assert clients[0].get(made.training_id).privacy == found.privacy
    listed = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings[0]
    assert not listed.HasField("privacy")
    made_model = load(download(actor, made.model_id)[1])
    assert made_model["count"] == 3
    noise = made_model["weight"] - 2 * 1 / math.sqrt(3000)
    assert noise.std() == pytest.approx(math.sqrt(2) / 3, rel=0.1)


def test_a_training_without_privacy_shows_none(actor: Person, clients: list[Person]) -> None:
    made = create(actor, clients, aggregation={})
    assert not actor.get(made.training_id).HasField("privacy")


def test_a_budget_that_pays_no_round_is_refused_with_its_cost(actor: Person, clients: list[Person]) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "differential_privacy.epsilon_budget", "4.377") as error:
        create(actor, clients, aggregation=aggregation(epsilon_budget=4))
    assert list(error.details.fields) == ["spec.aggregation.differential_privacy.epsilon_budget"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"noise_multiplier": 1e-4}, "noise_multiplier"),
        ({"delta": 1.0}, "delta"),
        ({"delta": -1e-5}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"epsilon_budget": -1.0}, "epsilon_budget"),
        ({"epsilon_budget": math.inf}, "epsilon_budget"),
        ({"example_cap": 1 << 60}, "example_cap"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(actor: Person, options: dict[str, Any], field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"differential_privacy.{field}"):
        create(actor, [], aggregation=aggregation(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"quantile": 1.5},
        {"quantile": -0.1},
        {"quantile": math.nan},
        {"learning_rate": -1},
        {"initial_norm": -1},
        {"initial_norm": math.inf},
        {"noise_std": -1},
        {"noise_std": 1e31},
    ],
    ids=str,
)
def test_options_of_adaptive_clipping_out_of_range_are_refused(actor: Person, options: dict[str, Any]) -> None:
    (field,) = options
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"clipping.adaptive.{field}"):
        create(actor, [], aggregation={"clipping": {"adaptive": options}})


@pytest.mark.parametrize(
    ("stages", "spec", "word"),
    [
        ({}, {}, "clipping"),
        ({**FIXED, "median": {}}, {}, "median"),
        ({**FIXED, "fed_nova": {}}, {}, "fed_nova"),
        ({**FIXED, "q_fed_avg": {}}, {}, "q_fed_avg"),
        ({**FIXED, "mixing": {"nearest_neighbor": {}}}, {}, "mixing"),
        ({**FIXED, "buffering": {"size": 3}}, {}, "buffering"),
        ({**FIXED, "shadow": [{}]}, {}, "shadow"),
        (FIXED, {"uncertainty": {"swag": {}}}, "swag"),
        (FIXED, {"cohort": {"size": 2}}, "cohort.fraction"),
        (FIXED, {"cohort": {"fraction": 0.5, "over_selection": 1.5}}, "over_selection"),
        ({"clipping": {"adaptive": {"noise_std": 0}}}, {}, "noise_std"),
        ({"clipping": {"fixed": {"norm": 1e-31}}}, {}, "clipping.fixed.norm"),
        ({"clipping": {"fixed": {"norm": 1e31}}}, {}, "clipping.fixed.norm"),
        ({"clipping": {"adaptive": {"noise_std": 0.5}}}, {}, "noise_std"),
    ],
    ids=str,
)
def test_what_does_not_go_with_privacy_is_refused(
    actor: Person, stages: dict[str, Any], spec: dict[str, Any], word: str
) -> None:
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", word):
        create(actor, [], aggregation=aggregation(stages=stages), **spec)


def test_a_tree_takes_cohorts_of_a_size_and_no_adaptive_clipping(actor: Person, clients: list[Person]) -> None:
    create(actor, clients, aggregation=aggregation(tree=True), cohort={"size": 2})
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", "tree", "adaptive"):
        create(actor, clients, aggregation=aggregation(tree=True, stages={"clipping": {"adaptive": {}}}))


def test_what_goes_with_privacy_works(actor: Person, clients: list[Person]) -> None:
    stages = {
        "fed_prox": {"mu": 0.1},
        "clipping": {"adaptive": {"quantile": 0.5}},
        "server_optimizer": {"adam": {"learning_rate": 0.01}},
    }
    made = create(actor, clients, 2, aggregation=aggregation(example_cap=10, stages=stages))
    shown = actor.get(made.training_id).spec.aggregation
    assert shown.differential_privacy.delta == 1e-5
    assert shown.differential_privacy.example_cap == 10
    assert not shown.clipping.adaptive.HasField("noise_std")
    assert shown.clipping.adaptive.initial_norm == 0.1
    actor.start(made.training_id)
    for number in range(2):
        play(actor, clients, made, number)
    assert actor.get(made.training_id).state == training_pb2.TRAINING_STATE_COMPLETED


def test_rounds_of_a_fraction_end_even_if_nobody_is_drawn(actor: Person, clients: list[Person]) -> None:
    made = create(actor, clients, 6, cohort={"fraction": 0.3, "seed": 5})
    people = {client.user_id: client for client in clients}
    events = actor.subscribe(made.training_id)
    actor.start(made.training_id)
    sizes = []
    for event in events:
        if event.HasField("training_finished"):
            break
        if event.HasField("round_closed"):
            sizes.append(event.round_closed.num_updates)
        until(lambda: _submit_all(people, made.training_id))
    assert len(sizes) == 6
    assert sum(sizes) < 18
    assert actor.get(made.training_id).model_version == 6


def _submit_all(people: dict[str, Person], training_id: str) -> bool:
    """Has everybody submit who is asked; others are refused."""
    for person in people.values():
        number = person.get(training_id).round
        try:
            person.submit(training_id, UPDATE, number)
        except grpc.RpcError:
            continue
    return True


def test_a_round_with_noise_is_not_computed_once_more(actor: Person, clients: list[Person]) -> None:
    made = create(actor, clients, 1)
    actor.start(made.training_id)
    play(actor, clients, made, 0)
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "noise", "not recorded"):
        actor.audit.ReplayRound(audit_pb2.ReplayRoundRequest(training_id=made.training_id, round=0))
    without = audit_pb2.ReplayTrainingRequest(
        training_id=made.training_id, without_client_ids=[clients[0].user_id], model_name="branch"
    )
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "noise", "not recorded"):
        list(actor.audit.ReplayTraining(without))


@pytest.fixture
def own(tmp_path: Path) -> Any:
    with Server(tmp_path / "data") as running:
        yield running


def people(server: Server, admin: Person, count: int) -> tuple[Person, list[Person]]:
    return admin.make(server.address, "ACTOR"), [admin.make(server.address, "CLIENT") for _ in range(count)]


def test_a_budget_outlasts_restarts_and_secrets_are_nowhere(own: Server) -> None:
    with grpc.insecure_channel(own.address) as channel:
        actor, clients = people(own, Person(channel, own.admin_token), 2)
        made = create(actor, clients, 50, aggregation=aggregation(30.0, tree=True, epsilon_budget=0.9))
        allowed = made.privacy.rounds_left
        assert 3 < allowed < 9
        actor.start(made.training_id)
        keys, bits = set(), b""
        for number in range(allowed):
            play(actor, clients, made, number)
            with sqlite3.connect(own.data_dir / "fedround.db") as database:
                rows = database.execute("SELECT sha256, details FROM artifact WHERE kind = 'tree/key'").fetchall()
            for sha256, _ in rows:
                (path,) = own.data_dir.glob(f"**/{sha256}")
                bits = load(path.read_bytes())["value"].tobytes()
                keys.add(bits)
            # The round that is open was charged: once, although the server starts anew.
            assert len(rows) == (number + 1 < allowed)
            own.stop()
            own.start()
            found = actor.get(made.training_id)
            assert found.privacy.rounds == min(allowed, number + 2)
        assert (found.error.reason, found.model_version) == ("PRIVACY_BUDGET", allowed)
        assert len(keys) == 1
        assert len(bits) == 32
    texts = [own.log.encode(), *(path.read_bytes() for path in own.data_dir.glob("fedround.db*"))]
    for text in texts:
        assert bits not in text
        assert bits.hex().encode() not in text
        assert str(list(bits)).encode() not in text


def test_without_the_package_a_training_with_privacy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/dp_accounting.py").write_text("raise ImportError('it is not here')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{os.environ.get('PYTHONPATH', '')}")
    with Server(tmp_path / "data", program=MODULE) as server, grpc.insecure_channel(server.address) as channel:
        actor, clients = people(server, Person(channel, server.admin_token), 1)
        with fails_with("FAILED_PRECONDITION", "ACCOUNTING_MISSING", "pip install 'fedround[dp]'"):
            create(actor, clients)
        create(actor, clients, aggregation={"clipping": {"adaptive": {}}})
