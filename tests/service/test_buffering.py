"""Asynchronous trainings over a real port."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import TIMEOUT, Person, download, fails_with, model_file, update_spec
from calls import until as wait_until
from fedround.v1 import audit_pb2, control_pb2, round_pb2, training_pb2
from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_FLOAT16, Aggregation

BUFFERED: dict[str, Any] = {"buffering": {"size": 2, "max_staleness": 2, "exponent": 1.0}}
Makes = Callable[..., None]


def running(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    spec = {"aggregation": BUFFERED, "target_num_updates": 20, **spec}
    made = actor.create(client_ids=[client.user_id for client in clients], **spec)
    return actor.start(made.training_id)


def make_version(actor: Person, clients: list[Person], training_id: str, offset: float = 1.0) -> int:
    """Has clients send updates from the current version; returns the version that they make."""
    number = actor.get(training_id).round
    for client in clients:
        client.submit(training_id, model_file(offset), number)
    wait_until(lambda: actor.get(training_id).round == number + 1)
    return number + 1


def the_round(actor: Person, training_id: str, number: int) -> Any:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id, round=number)).round


def weights(actor: Person, model_id: str, version: int) -> dict[str, np.ndarray]:
    return load(download(actor, model_id, version=version)[1])


def test_the_spec_is_echoed_with_its_defaults(actor: Person) -> None:
    for given, echoed in (
        ({}, {"size": 10, "max_staleness": 10, "exponent": 0.5, "fed_buff": {}}),
        ({"exponent": 0.0, "size": 3}, {"size": 3, "max_staleness": 10, "exponent": 0.0, "fed_buff": {}}),
        ({"fed_async": {}}, {"size": 1, "max_staleness": 10, "exponent": 0.5, "fed_async": {"alpha": 0.6}}),
    ):
        spec = actor.create(metric_names=["loss"], aggregation={"buffering": given}).spec
        assert spec.aggregation == Aggregation(fed_avg={}, buffering=echoed)
        assert spec.evaluation == training_pb2.EVALUATION_FINAL_ONLY


@pytest.mark.parametrize(
    ("buffering", "field"),
    [
        ({"size": 100_001}, "size"),
        ({"size": 2, "fed_async": {}}, "size"),
        ({"max_staleness": 1001}, "max_staleness"),
        ({"exponent": -1.0}, "exponent"),
        ({"exponent": float("nan"), "fed_async": {}}, "exponent"),
        ({"fed_async": {"alpha": 1.5}}, "fed_async.alpha"),
        ({"fed_async": {"alpha": -0.5}}, "fed_async.alpha"),
    ],
)
def test_an_option_out_of_range(actor: Person, buffering: dict[str, Any], field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"spec.aggregation.buffering.{field}") as error:
        actor.create(aggregation={"buffering": buffering})
    assert list(error.details.fields) == [f"spec.aggregation.buffering.{field}"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"aggregation": {"fed_dc": {}}}, "does not go with fed_dc"),
        ({"uncertainty": {"swag": {"rank": 2}}}, "does not go with swag"),
        ({"cohort": {"fraction": 0.5}}, "of spec.cohort, only labels and min_available"),
        ({"cohort": {"size": 2}}, "of spec.cohort, only labels and min_available"),
        ({"cohort": {"available_only": True}}, "of spec.cohort, only labels and min_available"),
        ({"round_policy": {"min_updates": 2}}, "leave spec.round_policy.min_updates unset"),
        (
            {"metric_names": ["loss"], "evaluation": training_pb2.EVALUATION_EVERY_ROUND},
            "does not go with EVALUATION_EVERY_ROUND",
        ),
        ({"metric_names": ["loss"], "selection": {"metric": "loss", "goal": 1, "patience": 3}}, "selection.patience"),
        ({"aggregation": {"krum": {"f": 1}}}, "makes a version of 2 updates, and krum(f=1) needs 5 updates"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it(actor: Person, spec: dict[str, Any], words: str) -> None:
    aggregation = {**BUFFERED, **spec.pop("aggregation", {})}
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", words):
        actor.create(aggregation=aggregation, **spec)


def test_labels_and_all_other_stages_go_with_it(actor: Person) -> None:
    stages = {"clipping": {"fixed": {}}, "mixing": {"bucketing": {}}, "server_optimizer": {"adam": {}}, "median": {}}
    actor.create(aggregation={**BUFFERED, **stages}, cohort={"labels": {"site": "a"}, "min_available": 1})


def test_slow_updates_count_by_their_staleness(actor: Person, clients: list[Person]) -> None:
    slow, *fast = clients[:3]
    training = running(actor, clients[:3])
    training_id, events = training.training_id, slow.subscribe(training.training_id)
    assert make_version(actor, fast, training_id, 1) == 1
    assert make_version(actor, fast, training_id, 2) == 2
    receipt = slow.submit(training_id, model_file(5), 0)
    assert receipt.round == 2
    assert slow.submit(training_id, model_file(5), 0, base_version=0) == receipt
    waiting = the_round(actor, training_id, 2)
    assert waiting.waiting_for.startswith("1 more of 2 updates")
    assert waiting.wait_rule == round_pb2.WAIT_RULE_MIN_UPDATES
    fast[0].submit(training_id, model_file(3), 2)
    wait_until(lambda: actor.get(training_id).model_version == 3)
    versions = [weights(actor, training.model_id, number) for number in range(4)]
    floating = [name for name in versions[0] if versions[0][name].dtype.kind == "f"]
    stale, fresh = load(model_file(5)), load(model_file(3))
    for name in floating:
        expected = versions[2][name] + ((stale[name] - versions[0][name]) / 3 + (fresh[name] - versions[2][name])) / 2
        assert np.allclose(versions[3][name], expected, rtol=1e-6)
    found = {one.user_id: one.report.staleness for one in the_round(actor, training_id, 2).participants if one.arrived}
    assert found == {slow.user_id: 2, fast[0].user_id: 0}
    replayed = actor.audit.ReplayRound(audit_pb2.ReplayRoundRequest(training_id=training_id, round=2))
    assert replayed.replayed_sha256 == replayed.recorded_sha256
    assert replayed.distance == 0
    events.cancel()


def test_one_beyond_the_bound_is_told_before_its_body(actor: Person, clients: list[Person]) -> None:
    slow, *fast = clients[:3]
    training_id = running(actor, clients[:3]).training_id
    for _ in range(3):
        make_version(actor, fast, training_id)
    spec = update_spec(training_id, model_file(9))
    words = ("version 0, 3 versions before version 3", "at most 2", "newest round_started")
    with fails_with("FAILED_PRECONDITION", "UPDATE_STALE", *words) as error:
        slow.rounds.SubmitUpdate(iter([round_pb2.SubmitUpdateRequest(spec=spec)]), timeout=TIMEOUT)
    assert error.details.metadata == {"staleness": "3", "max_staleness": "2"}
    (rejected,) = the_round(actor, training_id, 3).rejected_updates
    assert (rejected.reason, rejected.count) == ("UPDATE_STALE", 1)


def test_a_base_version_that_does_not_exist(actor: Person, clients: list[Person]) -> None:
    training_id = running(actor, clients[:3]).training_id
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.base_version", "the latest version is 0"):
        clients[0].submit(training_id, model_file(), base_version=1)
    plain = running(actor, clients[:1], aggregation={}).training_id
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.base_version", "started from version 0"):
        clients[0].submit(plain, model_file(), base_version=1)


def test_the_distance_is_from_the_base_version(actor: Person, clients: list[Person]) -> None:
    slow, *fast = clients[:3]
    training_id = running(actor, clients[:3], max_update_norm=4).training_id
    make_version(actor, fast, training_id, 1)
    # Nine floating elements: three times the offset.
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "6 away"):
        slow.submit(training_id, model_file(2), 0)
    slow.submit(training_id, model_file(-1), 0)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "6 away"):
        fast[0].submit(training_id, model_file(-1), 1)


def test_infinities_are_compared_with_the_base_version(actor: Person, clients: list[Person]) -> None:
    slow, *fast = clients[:3]
    mask = np.array([0, -np.inf], np.float32)

    def file(value: float) -> bytes:
        return save({"mask": mask, "w": np.full(3, value, np.float32)})

    spec = {"client_ids": [client.user_id for client in clients[:3]], "target_num_updates": 9}
    made = actor.create(file(0), aggregation=BUFFERED, allow_non_finite_buffers=True, **spec)
    actor.start(made.training_id)
    for client in fast:
        client.submit(made.training_id, file(1))
    wait_until(lambda: actor.get(made.training_id).round == 1)
    slow.submit(made.training_id, file(3), 0)
    fast[0].submit(made.training_id, file(1), 1)
    wait_until(lambda: actor.get(made.training_id).round == 2)
    found = weights(actor, made.model_id, 2)
    assert np.array_equal(found["mask"], mask)
    assert found["w"].tolist() == pytest.approx([1 + (3 / 2 + 0) / 2] * 3)


@pytest.mark.parametrize("precision", [None, UPDATE_PRECISION_FLOAT16])
def test_fed_async_moves_towards_each_update(actor: Person, clients: list[Person], precision: Any) -> None:
    def sent(value: float, base: float) -> bytes:
        changed = np.full(3, value, np.float32)
        return save({"w": changed if precision is None else (changed - np.float32(base)).astype(np.float16)})

    made = actor.create(
        save({"w": np.zeros(3, np.float32)}),
        client_ids=[client.user_id for client in clients[:2]],
        target_num_updates=2,
        aggregation={"buffering": {"fed_async": {"alpha": 0.5}, "exponent": 1.0}},
        update_precision=precision,
    )
    actor.start(made.training_id)
    assert clients[0].submit(made.training_id, sent(8, 0)).round == 0
    wait_until(lambda: actor.get(made.training_id).round == 1)
    assert clients[1].submit(made.training_id, sent(16, 0)).round == 1
    wait_until(lambda: actor.get(made.training_id).model_version == 2)
    # 0 + 0.5 * 8, then 4 + 0.25 * (16 - 4).
    assert weights(actor, made.model_id, 2)["w"].tolist() == [7, 7, 7]


def test_a_pause_tells_to_keep_the_update(actor: Person, clients: list[Person]) -> None:
    slow, *fast = clients[:3]
    training_id = running(actor, clients[:3]).training_id
    actor.control.PauseTraining(control_pb2.PauseTrainingRequest(training_id=training_id))
    for client in fast:
        client.submit(training_id, model_file(1))
    wait_until(lambda: actor.get(training_id).model_version == 1)
    with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "keep the update"):
        slow.submit(training_id, model_file(2))
    actor.control.ResumeTraining(control_pb2.ResumeTrainingRequest(training_id=training_id))
    assert slow.submit(training_id, model_file(2)).round == 1


def test_a_removed_participant_does_not_count(actor: Person, clients: list[Person]) -> None:
    slow, *fast = clients[:3]
    training_id = running(actor, clients[:3]).training_id
    slow.submit(training_id, model_file(2))
    actor.trainings.RemoveClients(training_pb2.RemoveClientsRequest(training_id=training_id, client_ids=[slow.user_id]))
    with fails_with("FAILED_PRECONDITION", "UPDATE_SUPERSEDED"):
        slow.submit(training_id, model_file(2))
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT"):
        slow.submit(training_id, model_file(3))
    make_version(actor, fast, training_id)


def test_updates_sent_at_once_all_count(actor: Person, clients: list[Person]) -> None:
    made = running(actor, clients[:3], aggregation={"buffering": {"fed_async": {}}}, target_num_updates=3)
    calls = []
    for client in clients[:3]:
        data = model_file(1)
        spec = update_spec(made.training_id, data)
        stream = iter([round_pb2.SubmitUpdateRequest(spec=spec, chunk=data)])
        calls.append(client.rounds.SubmitUpdate.future(stream, timeout=TIMEOUT))
    assert sorted(call.result().receipt.round for call in calls) == [0, 1, 2]
    wait_until(lambda: actor.get(made.training_id).model_version == 3)
