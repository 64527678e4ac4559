import grpc
import numpy as np
import pytest
import torch

from client.scripted import MODEL, refusal
from fedround.v1.event_pb2 import ModelInfo
from fedround.v1.inference_pb2 import PredictResponse, Tensor
from fedround_client import ArchitectureUnknown, McDropout, TensorError
from fedround_client.options import uncertainty

pytestmark = pytest.mark.timeout(30)

ENTROPIES = ("predictive_entropy", "expected_entropy", "mutual_information")


def tensor(values):
    array = np.float32(values)
    return Tensor(dtype="F32", shape=array.shape, data=array.tobytes())


def response(**tensors):
    return PredictResponse(
        model=ModelInfo(model_id=MODEL, version=4),
        samples=7,
        uncertainty=uncertainty(McDropout(samples=7)),
        **{name: tensor(values) for name, values in tensors.items()},
    )


def test_arrays_go_and_arrays_come(server):
    inputs = np.arange(6, dtype=np.int16).reshape(2, 3)
    choice = McDropout(samples=7, softmax=True)
    call = server.run(server.client.predict, MODEL, inputs, tag="best", architecture="mlp", uncertainty=choice, seed=0)
    sent = {"mean": [[0.25, 0.75]], "variance": [[1, 2]], "std": [[3, 4]]}
    sent |= {name: [number] for number, name in enumerate(ENTROPIES)}
    request = server.reply("Predict", response(**sent))
    assert (request.model_id, request.tag, request.architecture) == (MODEL, "best", "mlp")
    assert (request.HasField("version"), request.HasField("seed"), request.seed) == (False, True, 0)
    assert request.uncertainty.mc_dropout == choice
    assert (request.inputs.dtype, list(request.inputs.shape)) == ("I16", [2, 3])
    assert np.array_equal(np.frombuffer(request.inputs.data, "<i2").reshape(2, 3), inputs)
    found = call.result(10)
    assert (found.model_id, found.model_version, found.samples) == (MODEL, 4, 7)
    assert found.uncertainty.mc_dropout.samples == 7
    for name, values in sent.items():
        array = getattr(found, name)
        assert array.dtype == np.float32
        assert array.tolist() == values
    assert found.mean.flags.writeable


def test_one_pass_has_no_spread_and_no_entropies(server):
    call = server.run(server.client.predict, MODEL, np.zeros(2), version=0)
    request = server.reply("Predict", response(mean=[1, 2]))
    assert request.HasField("version")
    assert not any(request.HasField(name) for name in ("uncertainty", "seed"))
    found = call.result(10)
    assert found.mean.tolist() == [1, 2]
    assert [getattr(found, name) for name in ("variance", "std", *ENTROPIES)] == [None] * 5


@pytest.mark.parametrize(
    ("inputs", "dtype"),
    [
        (np.arange(6, dtype=">f4").reshape(3, 2).T, "F32"),
        (np.array([[True, False]]), "BOOL"),
        (np.arange(3, dtype=np.uint8), "U8"),
        (np.float16([[1.5]]), "F16"),
        (torch.arange(4.0, dtype=torch.float64).reshape(2, 2), "F64"),
    ],
    ids=["other byte order, transposed", "bool", "uint8", "float16", "torch"],
)
def test_inputs_are_sent_little_endian_in_row_major_order(server, inputs, dtype):
    call = server.run(server.client.predict, MODEL, inputs)
    sent = server.reply("Predict", response(mean=[0])).inputs
    call.result(10)
    values = np.asarray(inputs)
    assert (sent.dtype, tuple(sent.shape)) == (dtype, values.shape)
    assert sent.data == values.astype(values.dtype.newbyteorder("<")).tobytes("C")


@pytest.mark.parametrize(
    ("inputs", "text"),
    [(np.array(["a"]), "dtype <U1"), (np.zeros((1, 1), np.complex64), "complex64"), (np.zeros(2**19), "at most")],
)
def test_inputs_that_cannot_be_sent_are_refused_at_once(server, inputs, text):
    with pytest.raises(TensorError, match=text):
        server.client.predict(MODEL, inputs)


def test_a_refusal_is_typed(server):
    call = server.run(server.client.predict, MODEL, np.zeros(2))
    server.refuse("Predict", refusal(grpc.StatusCode.FAILED_PRECONDITION, "ARCHITECTURE_UNKNOWN"))
    assert type(call.exception(10)) is ArchitectureUnknown
