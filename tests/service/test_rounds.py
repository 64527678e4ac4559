"""Whole rounds by raw calls: the numbers, and the rules that close a round."""

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from safetensors.torch import load as load_torch
from safetensors.torch import save as save_torch

from calls import (
    TIMEOUT,
    Person,
    digest,
    download,
    fails_with,
    kinds,
    model_file,
    new_id,
    read_error,
    until,
    update_chunks,
    update_spec,
)
from fedround.v1 import model_pb2, round_pb2, training_pb2
from in_memory import is_in_memory
from servers import Server
from unit import exactly


def ids(people: Sequence[Person]) -> list[str]:
    return [one.user_id for one in people]


def finish(actor: Person, training_id: str, updates: list[tuple[Person, bytes, int]]) -> bytes:
    """Starts a training of one round, submits the updates in this order, and returns the model's file."""
    actor.start(training_id)
    events = actor.subscribe(training_id)
    for person, data, num_examples in updates:
        person.submit(training_id, data, num_examples=num_examples)
    assert kinds(list(events))[-1] == "training_finished"
    return download(actor, actor.get(training_id).model_id)[1]


def reference(updates: list[tuple[Person, bytes, int]]) -> dict[str, np.ndarray]:
    """FedAvg with exact sums, rounded once."""
    loaded = [(load(data), num_examples) for _, data, num_examples in updates]
    weights = [num_examples for _, num_examples in loaded]
    return {
        name: exactly.mean([tensors[name] for tensors, _ in loaded], weights)
        if tensor.dtype.kind == "f"
        else max(loaded, key=lambda one: one[1])[0][name]
        for name, tensor in loaded[0][0].items()
    }


def test_the_result_is_the_reference_bit_for_bit_in_any_order(actor: Person, clients: list[Person]) -> None:
    rng = np.random.default_rng(3)

    def tensors() -> dict[str, np.ndarray]:
        return {
            "single": rng.standard_normal((30, 500)).astype(np.float32),
            "double": rng.standard_normal(1000),
            "half": rng.standard_normal(77).astype(np.float16),
            "scalar": np.array(rng.standard_normal(), np.float32),
            "integers": rng.integers(0, 100, 5),
            "flags": rng.integers(0, 2, 5).astype(bool),
            "bn.num_batches_tracked": np.array(7, np.int64),
        }

    initial = save(tensors())
    updates = [(client, save(tensors()), examples) for client, examples in zip(clients, (3, 1, 2**31), strict=True)]
    expected = reference(updates)
    files = set()
    for order in itertools.permutations(updates):
        made = actor.create(initial, client_ids=ids(clients))
        files.add(finish(actor, made.training_id, list(order)))
    assert len(files) == 1
    found = load(files.pop())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes(), name


def test_bfloat16(actor: Person, clients: list[Person]) -> None:
    states = [{"w": torch.randn(1000, generator=torch.Generator().manual_seed(seed)).bfloat16()} for seed in range(3)]
    made = actor.create(save_torch(states[0]), client_ids=ids(clients))
    updates = [
        (client, save_torch(state), seed + 1) for seed, (client, state) in enumerate(zip(clients, states, strict=True))
    ]
    found = load_torch(finish(actor, made.training_id, updates))
    ordered = sorted(zip(clients, states, (1, 2, 3), strict=True), key=lambda one: one[0].user_id)
    summed = torch.zeros(1000, dtype=torch.float64)
    for _, state, weight in ordered:
        summed = summed + state["w"].double() * weight
    assert torch.equal(found["w"], (summed / 6).bfloat16())


def test_a_model_without_floats(actor: Person, clients: list[Person]) -> None:
    made = actor.create(save({"n": np.arange(3)}), client_ids=ids(clients[:2]))
    updates = [(clients[0], save({"n": np.arange(3) + 1}), 1), (clients[1], save({"n": np.arange(3) + 2}), 2)]
    assert load(finish(actor, made.training_id, updates))["n"].tolist() == [2, 3, 4]


def test_one_participant_and_one_update_is_the_update(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:1]))
    data = model_file(0.1)
    after = load(finish(actor, made.training_id, [(clients[0], data, 7)]))
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in load(data).items())


def test_aggregated_updates_need_not_stay_in_memory(server: Server, actor: Person, clients: list[Person]) -> None:
    # Those of small files stay until the journal is given up.
    more = {"more": np.zeros(300_000, np.float32)}
    made = actor.create(model_file(**more), client_ids=ids(clients[:2]))
    updates = [model_file(0.3, **more), model_file(0.4, **more)]
    files = [server.data_dir / "objects" / digest(data)[:2] / digest(data) for data in updates]
    actor.start(made.training_id)
    clients[0].submit(made.training_id, updates[0])
    if not is_in_memory(files[0]):
        pytest.skip("this file system does not tell what is in memory")
    clients[1].submit(made.training_id, updates[1])
    until(lambda: actor.get(made.training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
    until(lambda: not any(map(is_in_memory, files)))


def test_giants_have_their_mean(actor: Person, clients: list[Person]) -> None:
    made = actor.create(save({"w": np.zeros(2)}), client_ids=ids(clients[:2]))
    updates = [(client, save({"w": np.full(2, 1.7e308)}), 1000) for client in clients[:2]]
    assert load(finish(actor, made.training_id, updates))["w"].tolist() == [1.7e308, 1.7e308]


def test_a_rotten_file_is_asked_for_anew(server: Server, actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:2]))
    actor.start(made.training_id)
    events = clients[0].subscribe(made.training_id)
    data = save({**load(model_file()), "weight": np.full((2, 3), np.float32(np.pi))})
    clients[0].submit(made.training_id, data)
    stored = server.data_dir / "objects" / digest(data)[:2] / digest(data)
    stored.chmod(0o600)
    stored.write_bytes(b"\xff" * len(data))
    clients[1].submit(made.training_id, model_file(1))
    lost = next(event.update_lost for event in events if event.HasField("update_lost"))
    assert (lost.round, lost.participant_id) == (0, clients[0].user_id)
    clients[0].submit(made.training_id, data)
    assert kinds(list(events))[-1] == "training_finished"
    assert digest(stored.read_bytes()) == digest(data)


def test_k_of_n_updates_close_a_round(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients), round_policy={"min_updates": 2})
    started = actor.start(made.training_id)
    assert started.updates_expected == 2
    events = actor.subscribe(made.training_id)
    for client in clients[:2]:
        client.submit(made.training_id, model_file(1))
    assert list(events)[-2].round_closed.num_updates == 2


def test_a_missed_deadline_ends_the_training_and_names_the_missing(actor: Person, clients: list[Person]) -> None:
    # Long enough for the first to subscribe and to submit, however slow the disk is.
    made = actor.create(client_ids=ids(clients[:2]), round_policy={"deadline": {"seconds": 4}})
    actor.start(made.training_id)
    events = clients[0].subscribe(made.training_id)
    clients[0].submit(made.training_id, model_file(1))
    failed = list(events)[-1].training_failed
    assert failed.reason == "DEADLINE_MISSED"
    after = actor.get(made.training_id)
    assert (after.state, after.error.reason) == (training_pb2.TRAINING_STATE_ERROR, "DEADLINE_MISSED")
    waiting = actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=made.training_id)).round
    assert waiting.waiting_for == "nothing: the round was abandoned; the training's error says why"
    missing = next(one.name for one in waiting.participants if not one.arrived)
    assert missing in after.error.message
    assert missing not in failed.message + clients[0].get(made.training_id).error.message
    with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "the round is ABANDONED"):
        clients[1].submit(made.training_id, model_file(1))


def test_get_round_says_what_it_waits_for(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:2]))
    with fails_with("NOT_FOUND", "ROUND_NOT_FOUND", "has no such round yet"):
        actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=made.training_id))
    actor.start(made.training_id)
    clients[0].submit(made.training_id, model_file(1))
    found = actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=made.training_id)).round
    assert (found.number, found.state, found.updates_arrived, found.updates_expected) == (
        0,
        round_pb2.ROUND_STATE_OPEN,
        1,
        2,
    )
    assert {one.user_id: one.arrived for one in found.participants} == {ids(clients)[0]: True, ids(clients)[1]: False}
    assert "1 more of 2 updates" in found.waiting_for
    assert next(one for one in found.participants if one.arrived).HasField("last_seen_time")
    with fails_with("PERMISSION_DENIED", "NOT_ACTOR"):
        clients[0].rounds.GetRound(round_pb2.GetRoundRequest(training_id=made.training_id))
    with fails_with("NOT_FOUND", "ROUND_NOT_FOUND"):
        actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=made.training_id, round=9))


class TestEvaluation:
    @pytest.fixture
    def evaluating(self, actor: Person, clients: list[Person]) -> training_pb2.Training:
        made = actor.create(client_ids=ids(clients[:2]), metric_names=["accuracy"])
        actor.start(made.training_id)
        events = actor.subscribe(made.training_id)
        for client in clients[:2]:
            client.submit(made.training_id, model_file(1), metrics={"loss": 2.0})
        started = next(event for event in events if event.round_started.round == 1).round_started
        assert started.model.version == 1
        events.cancel()
        return actor.get(made.training_id)

    def test_reports_are_averaged_by_examples(self, actor: Person, clients: list[Person], evaluating: Any) -> None:
        events = actor.subscribe(evaluating.training_id)
        for client, accuracy, examples in zip(clients, (0.5, 1.0), (1, 3), strict=False):
            client.rounds.SubmitMetrics(report(evaluating.training_id, examples, accuracy=accuracy))
        assert kinds(list(events))[-1] == "training_finished"
        request = model_pb2.GetMetricsRequest(model_id=evaluating.model_id, page_size=1)
        reports = []
        while True:
            page = actor.models.GetMetrics(request)
            reports += page.reports
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        assert [(one.round, one.reporter_id != "") for one in reports] == [
            (number, of_reporter) for number in (0, 1) for of_reporter in (False, True, True)
        ]
        assert dict(reports[3].metrics) == {"accuracy": 0.875}
        assert (reports[3].num_examples, reports[3].model_version) == (4, 1)
        mine = clients[0].models.GetMetrics(model_pb2.GetMetricsRequest(model_id=evaluating.model_id)).reports
        # The loss was not asked for.
        assert [(one.reporter_id, dict(one.metrics)) for one in mine] == [
            ("", {}),
            (clients[0].user_id, {"loss": 2.0}),
            ("", {"accuracy": 0.875}),
            (clients[0].user_id, {"accuracy": 0.5}),
        ]
        cursor = {evaluating.training_id: 0}
        for person, closed in ((actor, {"loss": 2.0}), (clients[0], {})):
            log = list(person.subscribe(evaluating.training_id, resume_after_sequence=cursor))
            reported = [dict(one.round_closed.metrics) for one in log if one.HasField("round_closed")]
            assert reported == [closed, {"accuracy": 0.875}]

    def test_a_lacking_metric_is_named(self, actor: Person, clients: list[Person], evaluating: Any) -> None:
        before = actor.get(evaluating.training_id)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "metrics", "accuracy"):
            clients[0].rounds.SubmitMetrics(report(evaluating.training_id, 1, loss=1.0))
        with fails_with("INVALID_ARGUMENT", "NUM_EXAMPLES"):
            clients[0].rounds.SubmitMetrics(report(evaluating.training_id, -1, accuracy=1.0))
        with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "SubmitMetrics"):
            clients[0].submit(evaluating.training_id, model_file(1), 1)
        assert actor.get(evaluating.training_id) == before

    def test_a_report_counts_once(self, actor: Person, clients: list[Person], evaluating: Any) -> None:
        for _ in range(2):
            clients[0].rounds.SubmitMetrics(report(evaluating.training_id, 1, accuracy=0.5))
        with fails_with("ALREADY_EXISTS", "METRICS_EXIST"):
            clients[0].rounds.SubmitMetrics(report(evaluating.training_id, 1, accuracy=0.6))
        assert actor.get(evaluating.training_id).updates_arrived == 1


def report(training_id: str, num_examples: int, **metrics: float) -> round_pb2.SubmitMetricsRequest:
    return round_pb2.SubmitMetricsRequest(training_id=training_id, round=1, num_examples=num_examples, metrics=metrics)


class TestTransfers:
    def test_downloads_by_version_and_offset(self, actor: Person, clients: list[Person]) -> None:
        data = save({"w": np.arange(500_000, dtype=np.float32)})
        made = actor.models.UploadModel(
            iter(
                [
                    model_pb2.UploadModelRequest(spec=model_pb2.ModelSpec(name="m", sha256=digest(data))),
                    *(model_pb2.UploadModelRequest(chunk=one.chunk) for one in update_chunks(data)),
                ]
            )
        ).model
        assert (made.sha256, made.size_bytes, made.version) == (digest(data), len(data), 0)
        for offset in (0, 1, 786_432, len(data) - 1, len(data)):
            info, found = download(actor, made.model_id, offset=offset)
            assert (info.sha256, found) == (made.sha256, data[offset:])
        with fails_with("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE", str(len(data))):
            download(actor, made.model_id, offset=len(data) + 1)
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "version 5"):
            download(actor, made.model_id, version=5)
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
            download(clients[0], made.model_id)

    def test_an_update_goes_on_where_it_was(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=ids(clients[:2]))
        actor.start(made.training_id)
        data, upload_id = model_file(1), new_id()

        def attempt(offset: int, end: int) -> round_pb2.UpdateReceipt:
            spec = update_spec(made.training_id, data, upload_id=upload_id, offset=offset)
            chunk = round_pb2.SubmitUpdateRequest(chunk=data[offset:end])
            return clients[0].rounds.SubmitUpdate(iter([round_pb2.SubmitUpdateRequest(spec=spec), chunk])).receipt

        def committed(person: Person) -> int:
            return person.rounds.GetUpload(round_pb2.GetUploadRequest(upload_id=upload_id)).committed_size

        assert committed(clients[0]) == 0
        for offset, end in ((0, 10), (10, 100), (50, 120)):
            with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE", f"{end} of {len(data)}"):
                attempt(offset, end)
            assert committed(clients[0]) == end
            assert committed(clients[1]) == 0
        with fails_with("FAILED_PRECONDITION", "UPLOAD_OFFSET", "120"):
            attempt(121, len(data))
        receipt = attempt(120, len(data))
        assert receipt.sha256 == digest(data)
        assert committed(clients[0]) == 0

    def test_a_wrong_resumable_upload_is_forgotten(self, actor: Person) -> None:
        upload_id = new_id()
        spec = training_pb2.TrainingSpec(
            target_num_updates=1, model_sha256="0" * 64, model_size_bytes=len(model_file())
        )
        message = training_pb2.CreateTrainingRequest(spec=spec, upload_id=upload_id, chunk=model_file())
        with fails_with("DATA_LOSS", "DIGEST_MISMATCH"):
            actor.trainings.CreateTraining(iter([message]))
        assert actor.rounds.GetUpload(round_pb2.GetUploadRequest(upload_id=upload_id)).committed_size == 0

    def test_a_second_try_replaces_one_that_hangs(self, actor: Person) -> None:
        upload_id, data = new_id(), model_file()
        spec = training_pb2.TrainingSpec(target_num_updates=1, model_sha256=digest(data), model_size_bytes=len(data))
        first = training_pb2.CreateTrainingRequest(spec=spec, upload_id=upload_id, chunk=data[:50])

        done = threading.Event()

        def hanging() -> Any:
            yield first
            done.wait(TIMEOUT)

        call = actor.trainings.CreateTraining.future(hanging())
        asked = round_pb2.GetUploadRequest(upload_id=upload_id)
        until(lambda: actor.rounds.GetUpload(asked).committed_size == 50)
        again = training_pb2.CreateTrainingRequest(spec=spec, upload_id=upload_id, offset=50, chunk=data[50:])
        made = actor.trainings.CreateTraining(iter([again]), timeout=TIMEOUT).training
        done.set()
        assert read_error(call.exception()).reason == "UPLOAD_SUPERSEDED"
        assert download(actor, made.model_id)[1] == data
