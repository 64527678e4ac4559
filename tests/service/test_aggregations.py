"""Aggregations over a port: what goes together works, and what does not is refused with a reason."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import TIMEOUT, Person, download, fails_with, model_file, update_spec
from fedround.v1 import round_pb2, training_pb2
from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_INT8, Aggregation

ALL_STAGES = {
    "clipping": {"fixed": {"norm": 100}},
    "mixing": {"nearest_neighbor": {"f": 1}},
    "server_optimizer": {"sgd": {}},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "fed_prox": {"mu": 0.1},
    "fed_dc": {"daisy_period": 1, "aggregation_period": 1},
    "trimmed_mean": {"beta": 0.2},
    "krum": {"f": 0},
    "multi_krum": {"f": 0, "m": 2},
    "bulyan": {"f": 0},
}
"""Options with which three updates are enough."""
ADAPTED = ("lora_stack", "lora_svd", "freeze_a")
"""Rules for models with adapters: test_lora.py."""
RULES = {
    field.name: OPTIONS.get(field.name, {})
    for field in Aggregation.DESCRIPTOR.oneofs_by_name["algorithm"].fields
    # What partial_sum makes is no model: test_relays.py.
    if field.name not in (*ADAPTED, "partial_sum")
}
OWNED = ("fed_nova", "q_fed_avg", "fl_trust")
"""Rules that have to know whose an update is."""
CHAINED = "fed_dc"
WITHOUT = {"scaffold": ("clipping", "mixing"), "fed_dyn": ("clipping", "mixing", "server_optimizer")}
"""The stages that do not go with a rule."""


def values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "layer.bias": rng.standard_normal(3).astype(np.float16),
        "bn.running_mean": rng.standard_normal(3).astype(np.float32),
        "bn.num_batches_tracked": np.array(seed, np.int64),
        "steps": np.array([seed], np.int32),
    }


def sent(name: str, tensors: dict[str, np.ndarray]) -> bytes:
    """The file of an update, with what the rule needs beside its tensors."""
    trained = [key for key in tensors if key.startswith(("layer.", "mask"))] if name == "scaffold" else []
    changes = {f"control/{key}": np.full(tensors[key].shape, 0.5, np.float32) for key in trained}
    return save({**tensors, **changes})


def allowed(name: str, stages: dict[str, Any]) -> dict[str, Any]:
    """The stages that go with a rule."""
    without = (*WITHOUT.get(name, ()), *(("mixing",) if name in OWNED else ()))
    return {field: stage for field, stage in stages.items() if field not in without}


def run(actor: Person, clients: list[Person], name: str, *, stages: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Runs a training of one version, and returns its tensors by name."""
    options = {"trusted_client_id": clients[0].user_id} if name == "fl_trust" else RULES[name]
    model = save(values(0))
    made = actor.create(
        model,
        client_ids=[client.user_id for client in clients],
        aggregation={name: options, **stages},
        **spec,
    )
    events = actor.subscribe(made.training_id)
    actor.start(made.training_id)
    trainable = spec.get("tensors", {}).get("trainable")
    for seed, client in enumerate(clients, 1):
        tensors = {key: value for key, value in values(seed).items() if not trainable or key in trainable}
        data = sent(name, tensors)
        client.submit(made.training_id, data, num_examples=seed, local_steps=seed, initial_loss=0.5)
    last = list(events)[-1]
    assert last.HasField("training_finished"), last
    return load(download(actor, made.model_id)[1])


@pytest.mark.parametrize("name", RULES)
def test_a_rule_works_alone_and_with_all_stages_that_go_with_it(
    actor: Person, clients: list[Person], name: str
) -> None:
    alone = run(actor, clients, name, stages={})
    bounds = np.array([[values(seed)["layer.weight"] for seed in range(4)]])[0]
    assert np.all(alone["layer.weight"] >= bounds.min(axis=0) - 1e-6) or name in ("fed_nova", "fl_trust", "fed_dyn")
    if name == CHAINED:
        return
    staged = run(actor, clients, name, stages=allowed(name, ALL_STAGES))
    # Buffers and integers are averaged or counted, whatever the stages.
    for key in ("bn.running_mean", "bn.num_batches_tracked", "steps"):
        assert np.array_equal(staged[key], alone[key])
    assert staged["bn.num_batches_tracked"] == 3


@pytest.mark.parametrize("name", [name for name in RULES if name != CHAINED])
def test_a_rule_works_on_a_part_of_the_tensors_and_in_other_precisions(
    actor: Person, clients: list[Person], name: str
) -> None:
    part = run(
        actor,
        clients,
        name,
        stages=allowed(name, {"clipping": {"fixed": {}}, "server_optimizer": {"adam": {}}}),
        tensors={"trainable": ["layer.weight"]},
        update_precision=UPDATE_PRECISION_INT8,
    )
    first = values(0)
    assert np.array_equal(part["layer.bias"], first["layer.bias"])
    assert not np.array_equal(part["layer.weight"], first["layer.weight"])


@pytest.mark.parametrize("name", [name for name in RULES if name != CHAINED])
def test_a_rule_works_on_a_model_with_infinite_buffers(actor: Person, clients: list[Person], name: str) -> None:
    mask = np.array([0, -np.inf, 0], np.float32)
    options = {"trusted_client_id": clients[0].user_id} if name == "fl_trust" else RULES[name]
    made = actor.create(
        save({**values(0), "mask": mask}),
        client_ids=[client.user_id for client in clients],
        aggregation={name: options, **allowed(name, {"clipping": {"fixed": {}}, "server_optimizer": {"yogi": {}}})},
        allow_non_finite_buffers=True,
    )
    events = actor.subscribe(made.training_id)
    actor.start(made.training_id)
    for seed, client in enumerate(clients, 1):
        data = sent(name, {**values(seed), "mask": mask})
        client.submit(made.training_id, data, num_examples=seed, local_steps=seed, initial_loss=0.5)
    last = list(events)[-1]
    assert last.HasField("training_finished"), last
    found = load(download(actor, made.model_id)[1])
    assert np.array_equal(found["mask"], mask)
    assert np.isfinite(found["layer.weight"]).all()


def refused(actor: Person, field: str, *words: str, **spec: Any) -> None:
    """A training with these options is refused because of a field, and nothing is created."""
    before = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", field, *words) as error:
        actor.create(model_file(), **spec)
    assert list(error.details.fields) == [field]
    assert actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings == before


@pytest.mark.parametrize("field", ALL_STAGES)
def test_no_stage_goes_with_daisy_chaining(actor: Person, field: str) -> None:
    stage = {field: ALL_STAGES[field]}
    refused(actor, f"spec.aggregation.{field}", "does not go with fed_dc", aggregation={"fed_dc": {}, **stage})


@pytest.mark.parametrize("name", OWNED)
@pytest.mark.parametrize("mixing", [{"nearest_neighbor": {}}, {"bucketing": {}}])
def test_mixed_updates_have_no_owner(actor: Person, clients: list[Person], name: str, mixing: dict[str, Any]) -> None:
    options = {"trusted_client_id": clients[0].user_id} if name == "fl_trust" else {}
    words = ("does not go with", name, "mixed ones have no owner")
    refused(actor, "spec.aggregation.mixing", *words, aggregation={name: options, "mixing": mixing})


@pytest.mark.parametrize(
    ("aggregation", "needed"),
    [
        ({"krum": {"f": 1}}, 5),
        ({"multi_krum": {"f": 1, "m": 6}}, 7),
        ({"bulyan": {"f": 2}}, 11),
        ({"krum": {"f": 0}, "mixing": {"bucketing": {"size": 3}}}, 7),
        ({"median": {}, "mixing": {"nearest_neighbor": {"f": 4}}}, 9),
    ],
)
def test_rounds_that_can_only_close_with_too_few(actor: Person, aggregation: dict[str, Any], needed: int) -> None:
    (field,) = (f"spec.aggregation.{name}" for name in aggregation if name != "mixing")
    few = needed - 1
    for option, spec in (
        ("spec.round_policy.min_updates", {"round_policy": {"min_updates": few}}),
        ("spec.cohort.size", {"cohort": {"size": few}}),
    ):
        words = (f"needs {needed} updates in a round, and {option} is {few}",)
        refused(actor, field, *words, aggregation=aggregation, **spec)
    actor.create(model_file(), aggregation=aggregation, round_policy={"min_updates": needed}, cohort={"size": needed})


@pytest.mark.parametrize(
    ("aggregation", "field"),
    [
        ({"clipping": {}}, "clipping"),
        ({"mixing": {}}, "mixing"),
        ({"server_optimizer": {}}, "server_optimizer"),
        ({"clipping": {"fixed": {"norm": -1}}}, "clipping.fixed.norm"),
        ({"server_optimizer": {"adam": {"beta1": 1}}}, "server_optimizer.adam.beta1"),
        ({"server_optimizer": {"sgd": {"learning_rate": float("nan")}}}, "server_optimizer.sgd.learning_rate"),
        ({"trimmed_mean": {"beta": 0.5}}, "trimmed_mean.beta"),
        ({"q_fed_avg": {"q": -1}}, "q_fed_avg.q"),
        ({"fl_trust": {}}, "fl_trust.trusted_client_id"),
        ({"fl_trust": {"trusted_client_id": "site 1"}}, "fl_trust.trusted_client_id"),
        ({"buffers": [""]}, "buffers"),
        ({"buffers": ["bias", "running_*"]}, "buffers"),
    ],
)
def test_an_option_out_of_range(actor: Person, aggregation: dict[str, Any], field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"spec.aggregation.{field}") as error:
        actor.create(model_file(), aggregation=aggregation)
    assert list(error.details.fields) == [f"spec.aggregation.{field}"]


def test_a_trusted_participant_that_does_not_exist(actor: Person) -> None:
    unknown = "123e4567-e89b-12d3-a456-426614174000"
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", unknown, "spec.aggregation.fl_trust"):
        actor.create(model_file(), aggregation={"fl_trust": {"trusted_client_id": unknown}})


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("fed_nova", "spec.local_steps", "fed_nova needs the number of local optimizer steps"),
        ("q_fed_avg", "spec.initial_loss", "q_fed_avg needs the loss of the round's model"),
    ],
)
def test_an_update_that_lacks_what_the_rule_needs_is_refused_before_its_body(
    actor: Person, clients: list[Person], name: str, field: str, words: str
) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients], aggregation={name: {}})
    actor.start(made.training_id)
    before = actor.get(made.training_id)
    spec = update_spec(made.training_id, model_file())

    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field, words) as error:
        stream = iter([round_pb2.SubmitUpdateRequest(spec=spec)])
        clients[0].rounds.SubmitUpdate(stream, timeout=TIMEOUT)
    assert list(error.details.fields) == [field]
    assert actor.get(made.training_id) == before
    given = {"local_steps": 4} if name == "fed_nova" else {"initial_loss": 0.0}
    receipt = clients[0].submit(made.training_id, model_file(), **given)
    assert clients[0].submit(made.training_id, model_file(), **given) == receipt
    other = {"local_steps": 5} if name == "fed_nova" else {"initial_loss": 0.5}
    with fails_with("ALREADY_EXISTS", "UPDATE_EXISTS", field.removeprefix("spec.")):
        clients[0].submit(made.training_id, model_file(), **other)


def test_a_round_with_too_few_updates_says_how_many_it_needs(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients], aggregation={"krum": {"f": 0}})
    actor.start(made.training_id)
    clients[0].rounds.ReportFailure(round_pb2.ReportFailureRequest(training_id=made.training_id, reason="BROKEN"))
    for client in clients[1:]:
        client.submit(made.training_id, model_file())
    found = actor.get(made.training_id)
    assert found.error.reason == "AGGREGATION_FAILED"
    assert "krum(f=0) needs 3 updates, and there are 2" in found.error.message


def test_a_start_with_too_few_participants(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients], aggregation={"krum": {}})
    with fails_with("FAILED_PRECONDITION", "NO_PARTICIPANTS", "krum(f=1) needs 5 registered participants"):
        actor.start(made.training_id)
