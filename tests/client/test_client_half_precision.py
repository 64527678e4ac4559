"""Updates in half precision: rounding, and when they are sent in full instead."""

import io
import logging
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.rounds import Rounds, finished, info_of, round_started
from client.scripted import OK, chunk_response
from fedround.v1.aggregation_pb2 import (
    UPDATE_PRECISION_BFLOAT16,
    UPDATE_PRECISION_FLOAT16,
    UPDATE_PRECISION_FULL,
    UPDATE_PRECISION_INT8,
)
from fedround.v1.aggregation_pb2 import TensorPrecision as TensorRule
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround.v1.round_pb2 import SubmitUpdateResponse
from fedround_client import from_safetensors, to_safetensors
from fedround_client.cache import SharedFile
from fedround_client.differences import NotRepresentable, difference_sources
from fedround_client.half_precision import round_to_half
from fedround_client.payload import CHUNK, Payload
from fedround_client.safetensors_stream import SafetensorsStream
from fedround_client.tensors import array_sources
from fedround_client.transport import TensorPrecision, Transport

pytestmark = pytest.mark.timeout(60)

MODEL = {
    "w": np.linspace(-3, 3, 1000, dtype=np.float32).reshape(20, 50),
    "wide": np.linspace(5, 7, 100),
    "half": np.ones(3, np.float16),
    "steps": np.array(4, np.int64),
}
values = arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32))


def shared_file(state):
    return SharedFile(io.BytesIO(to_safetensors(state)))


def all_in(precision):
    return Transport(TensorPrecision(precision))


@given(values)
def test_bfloat16_is_rounded_as_torch_rounds_it(numbers):
    expected = torch.from_numpy(numbers).to(torch.bfloat16)
    bits = round_to_half(numbers, "BF16")
    if torch.isfinite(expected).all():
        assert bits.tobytes() == expected.view(torch.int16).numpy().tobytes()
    else:
        assert bits is None


@given(values)
def test_float16_is_rounded_as_numpy_rounds_it(numbers):
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16)
    half = round_to_half(numbers, "F16")
    if np.isfinite(expected).all():
        assert half.tobytes() == expected.tobytes()
    else:
        assert half is None


@given(st.sampled_from([("FLOAT16", 2.0**-11, 2.0**-25), ("BFLOAT16", 2.0**-8, 2.0**-133)]), st.integers(0, 2**32))
def test_rebuilt_updates_are_within_the_rounding_error(precision, seed):
    name, relative, absolute = precision
    rng = np.random.default_rng(seed)
    step = 10.0 ** rng.integers(-6, 2)
    update = {
        key: np.asarray(tensor + rng.standard_normal(tensor.shape) * step).astype(tensor.dtype)
        for key, tensor in MODEL.items()
    }
    file = b"".join(
        bytes(one)
        for one in SafetensorsStream(
            difference_sources(array_sources(update), shared_file(MODEL), all_in(name))
        ).pieces()
    )
    found = from_safetensors(file, "torch")
    assert found["half"].dtype == torch.float16
    np.testing.assert_array_equal(found["half"], update["half"])
    assert found["steps"] == update["steps"]
    for key in ("w", "wide"):
        assert found[key].dtype == (torch.float16 if name == "FLOAT16" else torch.bfloat16)
        exact = update[key].astype(np.float64) - MODEL[key]
        # Half a unit in the last place of the half precision, and of the float32 that is rounded.
        bound = np.abs(exact) * (relative + 2.0**-23) + absolute
        assert (np.abs(found[key].double().numpy() - exact) <= bound).all()


@given(st.integers(0, 2500), st.sampled_from(["FLOAT16", "BFLOAT16"]))
def test_differences_can_be_read_from_any_offset(offset, precision):
    update = {name: tensor + tensor.dtype.type(1) for name, tensor in MODEL.items()}
    file = SafetensorsStream(difference_sources(array_sources(update), shared_file(MODEL), all_in(precision)))
    whole = b"".join(bytes(one) for one in file.pieces())
    assert len(whole) == file.size_bytes
    assert b"".join(bytes(one) for one in file.pieces(offset)) == whole[offset:]


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"w": np.full((20, 50), 70000, np.float32)}, "F16 cannot hold the difference of tensor 'w'"),
        ({"w": np.full((20, 50), np.nan, np.float32)}, "F16 cannot hold"),
        ({"wide": np.full(100, 1e300)}, "F16 cannot hold the difference of tensor 'wide'"),
        ({"w": MODEL["w"].T}, "'w' is not as in the model"),
        ({"w": MODEL["w"].astype(np.float64)}, "'w' is not as in the model"),
        ({"another": MODEL["w"]}, "'another' is not as in the model"),
    ],
)
def test_updates_that_cannot_be_sent_as_differences_are_rejected(update, text):
    with pytest.raises(NotRepresentable, match=text):
        Payload.of_tensors(
            difference_sources(array_sources({**MODEL, **update}), shared_file(MODEL), all_in("FLOAT16"))
        )


def test_a_difference_needs_memory_for_one_block():
    before = {"w": np.ones(10_000_000, np.float32)}
    after, model = {"w": before["w"] + 1}, shared_file(before)
    tracemalloc.start()
    try:
        payload = Payload.of_tensors(difference_sources(array_sources(after), model, all_in("BFLOAT16")))
        assert sum(len(chunk) for chunk, _ in payload.chunks(0)) == payload.size_bytes
        assert tracemalloc.get_traced_memory()[1] < 12 * CHUNK
    finally:
        tracemalloc.stop()


def submitted_tensors(server, train, precision, framework="numpy", rules=(), **options):
    """Runs a round that accepts differences; returns the tensors of the update as torch reads them."""
    rounds = Rounds(server, train, framework=framework, **options)
    model = info_of(0, to_safetensors(MODEL))
    rounds.send(round_started(1, 0, update_precision=precision, tensor_precisions=rules, model=model))
    rounds.training_is_at(0)
    _, rpc = server.stream("DownloadModel")
    file = to_safetensors(MODEL)
    rpc.send_response(chunk_response(DownloadModelResponse, file, info=info_of(0, file)))
    rpc.terminate(*OK)
    data = accept_update(server)
    rounds.send(finished(2))
    rounds.result()
    return from_safetensors(data, "torch")


def accept_update(server):
    rpc = server.upload("SubmitUpdate")
    first = rpc.take_request()
    assert len(first.chunk) == first.spec.size_bytes
    rpc.terminate(SubmitUpdateResponse(), *OK)
    return first.chunk


def add_in_place(model, round_):
    assert round_.update_precision in ("FLOAT16", "BFLOAT16")
    for tensor in model.values():
        tensor += 2
    return model, 1


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [(UPDATE_PRECISION_FLOAT16, torch.float16), (UPDATE_PRECISION_BFLOAT16, torch.bfloat16)]
)
def test_a_participant_sends_differences_if_the_round_accepts_them(server, framework, precision, dtype):
    sent = submitted_tensors(server, add_in_place, precision, framework)
    assert {name: tensor.dtype for name, tensor in sent.items()} == {
        "w": dtype,
        "wide": dtype,
        "half": torch.float16,
        "steps": torch.int64,
    }
    assert (sent["w"] == 2).all()
    assert sent["half"].tolist() == [3] * 3
    assert sent["steps"] == 6


@pytest.mark.parametrize("precision", [0, 1, 99])
def test_other_rounds_get_full_updates(server, precision):
    def train(model, round_):
        assert round_.update_precision == "FULL"
        return model, 1

    assert submitted_tensors(server, train, precision)["w"].dtype == torch.float32


def test_a_participant_follows_the_rules_of_single_tensors(server):
    rules = [
        TensorRule(tensors="wi*", precision=UPDATE_PRECISION_INT8, block_size=16),
        TensorRule(tensors="w*", precision=UPDATE_PRECISION_FULL),
    ]

    def train(model, round_):
        assert (round_.update_precision, list(round_.tensor_precisions)) == ("BFLOAT16", ["wi*", "w*"])
        return {name: tensor + tensor.dtype.type(2) for name, tensor in model.items()}, 1

    sent = submitted_tensors(server, train, UPDATE_PRECISION_BFLOAT16, rules=rules)
    assert {name: tensor.dtype for name, tensor in sent.items()} == {
        "w": torch.float32,
        "wide": torch.int8,
        "wide.int8_scales": torch.float32,
        "half": torch.float16,
        "steps": torch.int64,
    }
    assert len(sent["wide.int8_scales"]) == 7


@pytest.mark.parametrize(
    "unknown",
    [
        TensorRule(tensors="wide", precision=99),
        TensorRule(tensors="wide", precision=UPDATE_PRECISION_INT8, block_size=48),
    ],
)
def test_an_update_is_full_if_a_rule_is_not_known(server, unknown):
    rules = [TensorRule(tensors="w", precision=UPDATE_PRECISION_FULL), unknown]
    sent = submitted_tensors(server, lambda model, round_: (model, 1), UPDATE_PRECISION_FLOAT16, rules=rules)
    assert (sent["w"].dtype, sent["wide"].dtype) == (torch.float32, torch.float64)


def test_full_updates_can_be_chosen(server):
    assert (
        submitted_tensors(server, add_in_place, UPDATE_PRECISION_FLOAT16, full_updates=True)["w"].dtype == torch.float32
    )


def test_differences_that_overflow_are_sent_in_full(server, caplog):
    def train(model, round_):
        return {**model, "w": model["w"] + 1e6}, 1

    sent = submitted_tensors(server, train, UPDATE_PRECISION_FLOAT16)
    assert (sent["w"].dtype, sent["wide"].dtype) == (torch.float32, torch.float64)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "sent in full: F16 cannot hold the difference of tensor 'w'" in record.getMessage()


def test_without_the_cached_model_an_update_is_sent_in_full(server, monkeypatch):
    def no_room(self, path):
        self.file = None

    monkeypatch.setattr("fedround_client.cache.CacheWriter.__init__", no_room)
    assert submitted_tensors(server, add_in_place, UPDATE_PRECISION_FLOAT16)["w"].dtype == torch.float32
