"""Control variates over a real port: what updates have, what is refused, and what members of the cohort download."""

import threading
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from calls import Person, digest, download, fails_with, model_file, new_id, read_error, until, update_spec, whole
from fedround.v1 import audit_pb2, event_pb2, round_pb2, training_pb2
from servers import Server
from service.uploads import is_stored

SCAFFOLD = {"scaffold": {}}
CHANGE = {"control/weight": np.ones((2, 3), np.float32), "control/bias": np.full(3, 2.0)}


def with_change(offset: float = 1.0, **changed: Any) -> bytes:
    """An update whose tensors differ from the model by a number, with the change of its control variate."""
    return model_file(offset, **{**CHANGE, **changed})


def running(actor: Person, clients: list[Person], data: bytes | None = None, **spec: Any) -> str:
    wanted = {"aggregation": SCAFFOLD, "client_ids": [one.user_id for one in clients], **spec}
    made = actor.create(data, **wanted)
    actor.start(made.training_id)
    return made.training_id


def control(person: Person, training_id: str, number: int = 0, **request: Any) -> tuple[Any, bytes]:
    wanted = round_pb2.DownloadControlRequest(training_id=training_id, round=number, **request)
    return whole(person.rounds.DownloadControl(wanted))


def play(actor: Person, clients: list[Person], training_id: str, rounds: int) -> None:
    for number in range(rounds):
        for place, client in enumerate(clients, 1):
            file = with_change(place + number, **{"control/bias": np.full(3, float(place))})
            client.submit(training_id, file, number, num_examples=place)
        until(lambda number=number: actor.get(training_id).model_version == number + 1)


def test_the_control_variate_of_a_round_is_downloaded_by_its_cohort(actor: Person, clients: list[Person]) -> None:
    training_id = running(actor, clients, target_num_updates=3)
    info, nothing = control(clients[0], training_id)
    assert (info.sha256, info.size_bytes, info.version, nothing) == ("", 0, 0, b"")
    play(actor, clients, training_id, 2)
    info, file = control(clients[1], training_id, 2)
    assert (digest(file), len(file), info.version) == (info.sha256, info.size_bytes, 2)
    tensors = safetensors.numpy.load(file)
    # Two rounds in each of which all of three take part: the mean of 1, 2 and 3 twice.
    assert {name: (one.dtype.name, one.tolist()) for name, one in tensors.items()} == {
        "weight": ("float32", [[2.0] * 3] * 2),
        "bias": ("float64", [4.0] * 3),
    }
    assert control(clients[0], training_id, 2, offset=100)[1] == file[100:]
    compressed = round_pb2.DownloadControlRequest(
        training_id=training_id, round=2, compression=event_pb2.COMPRESSION_GZIP
    )
    assert list(clients[0].rounds.DownloadControl(compressed))[1].compression == event_pb2.COMPRESSION_GZIP
    with fails_with("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE", "start within the file"):
        control(clients[0], training_id, 2, offset=len(file) + 1)
    # That of an earlier round is that of the version that it started from.
    assert safetensors.numpy.load(control(clients[0], training_id, 1)[1])["bias"].tolist() == [2.0] * 3


def test_who_does_not_belong_to_the_round_gets_none(actor: Person, clients: list[Person], person: Any) -> None:
    training_id = running(actor, clients[:2], cohort=training_pb2.Cohort(size=1))
    chosen = {one.user_id for one in _round(actor, training_id).participants}
    (other,) = (one for one in clients[:2] if one.user_id not in chosen)
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT", "member"):
        control(other, training_id)
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
        control(clients[2], training_id)
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
        control(actor, training_id)
    with fails_with("NOT_FOUND", "ROUND_NOT_FOUND"):
        control(other, training_id, 7)
    plain = running(actor, clients[:1], aggregation={"fed_dyn": {}})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "fed_dyn, which has no control variate"):
        control(clients[0], plain)


def _round(actor: Person, training_id: str) -> Any:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id)).round


@pytest.mark.parametrize(
    ("file", "reason", "words"),
    [
        (model_file(1), "TENSORS_MISMATCH", ("'control/bias', 'control/weight'", "round.control", "learning_rate")),
        (
            with_change(**{"control/bias": np.ones(3, np.float32)}),
            "UPDATE_MISMATCH",
            ("'control/bias' is F32[3]", "asks for F64[3]"),
        ),
        (with_change(**{"control/weight": np.ones(6, np.float32)}), "UPDATE_MISMATCH", ("F32[6]", "F32[2, 3]")),
        (with_change(**{"control/count": np.ones((), np.float32)}), "TENSORS_MISMATCH", ("'control/count'",)),
    ],
    ids=["missing", "dtype", "shape", "of an integer"],
)
def test_an_update_with_another_control_variate_is_refused_before_its_body(
    actor: Person, clients: list[Person], file: bytes, reason: str, words: tuple[str, ...]
) -> None:
    training_id = running(actor, clients)
    header = 8 + int.from_bytes(file[:8], "little")
    spec = update_spec(training_id, file)

    def messages() -> Any:
        yield round_pb2.SubmitUpdateRequest(spec=spec)
        yield round_pb2.SubmitUpdateRequest(chunk=file[:header])
        # The answer comes while the body is still missing.
        assert called.wait(60)
        until(call.done)

    called = threading.Event()
    call = clients[0].rounds.SubmitUpdate.future(messages())
    called.set()
    with fails_with("INVALID_ARGUMENT", reason, *words):
        call.result()
    assert _round(actor, training_id).updates_arrived == 0


def test_numbers_that_are_not_finite_are_refused(actor: Person, clients: list[Person], server: Server) -> None:
    for more in ({}, {"allow_non_finite_buffers": True}, {"max_update_norm": 1e6}):
        training_id = running(actor, clients, **more)
        file = with_change(new_offset(), **{"control/bias": np.array([0, np.nan, 0])})
        with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "'control/bias'"):
            clients[0].submit(training_id, file)
        assert not is_stored(server, file)
        clients[0].submit(training_id, with_change())


def new_offset() -> float:
    return int(new_id()[:4], 16) / 1024


def test_the_norm_of_an_update_is_that_of_the_model(actor: Person, clients: list[Person]) -> None:
    training_id = running(actor, clients, max_update_norm=4)
    far = {"control/bias": np.full(3, 1e9)}
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM"):
        clients[0].submit(training_id, with_change(2.0, **far))
    clients[0].submit(training_id, with_change(1.0, **far))


@pytest.mark.parametrize("precision", ["FLOAT16", "INT8"])
def test_control_variates_are_sent_in_full(actor: Person, clients: list[Person], precision: str) -> None:
    training_id = running(
        actor, clients[:1], update_precision=f"UPDATE_PRECISION_{precision}", max_update_norm=100, target_num_updates=2
    )
    if precision == "FLOAT16":
        encoded = {"weight": np.ones((2, 3), np.float16), "bias": np.ones(3, np.float16)}
    else:
        encoded = {"weight": np.full((2, 3), 2, np.int8), "bias": np.full(3, 2, np.int8)}
        encoded |= {f"{name}.int8_scales": np.array([0.5], np.float32) for name in ("weight", "bias")}
    half = {name: one.astype(np.float16) for name, one in CHANGE.items()}
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "'control/"):
        clients[0].submit(training_id, model_file(**encoded, **half))
    clients[0].submit(training_id, with_change(0.0, **encoded))
    until(lambda: actor.get(training_id).model_version == 1)
    _, file = download(actor, actor.get(training_id).model_id, version=1)
    assert safetensors.numpy.load(file)["bias"].tolist() == [1.0] * 3
    assert safetensors.numpy.load(control(clients[0], training_id, 1)[1])["bias"].tolist() == [2.0] * 3


@pytest.mark.parametrize("rule", ["scaffold", "fed_dyn"])
def test_rounds_are_replayed_bit_for_bit(actor: Person, clients: list[Person], rule: str) -> None:
    training_id = running(actor, clients, aggregation={rule: {}}, target_num_updates=3)
    if rule == "scaffold":
        play(actor, clients, training_id, 3)
    else:
        for number in range(3):
            for place, client in enumerate(clients, 1):
                client.submit(training_id, model_file(place + number), number)
            until(lambda number=number: actor.get(training_id).model_version == number + 1)
    for number in range(3):
        found = actor.audit.ReplayRound(audit_pb2.ReplayRoundRequest(training_id=training_id, round=number))
        assert (found.replayed_sha256, found.distance) == (found.recorded_sha256, 0)


@pytest.mark.parametrize("rule", ["scaffold", "fed_dyn"])
@pytest.mark.parametrize("stage", [{"clipping": {"fixed": {}}}, {"mixing": {"bucketing": {}}}], ids=str)
def test_stages_that_change_single_updates_do_not_go_with_state(actor: Person, rule: str, stage: Any) -> None:
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", f"does not go with {rule}", "remember"):
        actor.create(aggregation={rule: {}, **stage})


def test_a_server_optimizer_goes_with_scaffold_only(actor: Person) -> None:
    actor.create(aggregation={"scaffold": {}, "server_optimizer": {"adam": {}}})
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", "does not go with fed_dyn", "step of its own"):
        actor.create(aggregation={"fed_dyn": {}, "server_optimizer": {"adam": {}}})


def test_names_of_control_variates_must_be_free(actor: Person) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "'control/w'", "rename") as error:
        actor.create(safetensors.numpy.save({"control/w": np.zeros(2, np.float32)}), aggregation=SCAFFOLD)
    assert list(read_error(error._error.value).fields) == ["spec.aggregation.scaffold"]
    long = {"w" * 510: np.zeros(2, np.float32)}
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "512 characters"):
        actor.create(safetensors.numpy.save(long), aggregation=SCAFFOLD)
    many = {f"{number}": np.zeros(1, np.float32) for number in range(10_001)}
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "20002 tensors"):
        actor.create(safetensors.numpy.save(many), aggregation=SCAFFOLD)
    # With other rules all of these are models.
    actor.create(safetensors.numpy.save(long))


def test_a_training_with_defaults_tells_them(actor: Person) -> None:
    assert actor.create(aggregation=SCAFFOLD).spec.aggregation.scaffold.learning_rate == 1
    assert actor.create(aggregation={"fed_dyn": {}}).spec.aggregation.fed_dyn.alpha == 0.1
    for rule, option in (("scaffold", "learning_rate"), ("fed_dyn", "alpha")):
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"spec.aggregation.{rule}.{option}", "> 0"):
            actor.create(aggregation={rule: {option: -1}})
