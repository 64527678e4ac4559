"""Updates as int8 differences, and stochastic rounding: error bounds, expected values, and the same bytes each time."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedround_client import from_safetensors, to_safetensors
from fedround_client.cache import SharedFile
from fedround_client.differences import BLOCK, NotRepresentable, difference_sources
from fedround_client.half_precision import round_to_half, round_to_half_at_random
from fedround_client.int8 import block_scales, to_int8
from fedround_client.payload import CHUNK, Payload
from fedround_client.safetensors_stream import SafetensorsStream
from fedround_client.tensors import array_sources
from fedround_client.transport import TensorPrecision, Transport

pytestmark = pytest.mark.timeout(60)

# Denormal numbers, giants and zeros among them.
wide = arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e38, 1e38))
narrow = arrays(np.float32, st.integers(1, 200), elements=st.floats(-60000, 60000, width=32))
block_sizes = st.sampled_from([16, 32, 256, 65536])
MODEL = {
    "w": np.linspace(-3, 3, 1000, dtype=np.float32).reshape(20, 50),
    "wide": np.linspace(5, 7, 100),
    "scalar": np.array(2, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "bias": np.ones(5, np.float32),
    "half": np.ones(3, np.float16),
    "steps": np.array(4, np.int64),
}
MIXED = Transport(
    TensorPrecision("INT8", stochastic_rounding=True),
    {
        "bias": TensorPrecision("FULL"),
        "w*": TensorPrecision("INT8", block_size=64),
        "sc*": TensorPrecision("BFLOAT16", stochastic_rounding=True),
    },
)


def generator(seed=1):
    return np.random.Generator(np.random.SFC64(seed))


def each(scales, block_size, count):
    """The scale of each number."""
    return np.repeat(scales.astype(np.float64), block_size)[:count]


def stream(update, transport, seed=None, model=MODEL):
    shared = SharedFile(io.BytesIO(to_safetensors(model)))
    return SafetensorsStream(difference_sources(array_sources(update), shared, transport, seed))


def content(file, offset=0):
    return b"".join(bytes(piece) for piece in file.pieces(offset))


@given(wide, block_sizes)
def test_the_nearest_int8_is_within_half_a_scale(values, block_size):
    scales = block_scales(values, block_size)
    integers = to_int8(values, scales, block_size, None)
    assert scales.dtype == np.float32
    assert len(scales) == math.ceil(len(values) / block_size)
    assert (np.abs(integers.astype(int)) <= 127).all()
    scale = each(scales, block_size, len(values))
    # Products of 24 and 7 bits are exact; a difference of float64 is rounded once more.
    assert (np.abs(scale * integers - values) <= scale / 2 * (1 + 2**-40)).all()
    for number, part in enumerate(np.split(values, range(block_size, len(values), block_size))):
        largest = np.abs(part).max()
        assert scales[number] >= largest / 127
        # Denormal scales have steps of 2^-149.
        assert scales[number] <= largest / 127 * (1 + 2**-22) + 2.0**-149
        assert (scales[number] == 0) == (largest == 0)


@given(wide, block_sizes, st.integers(0, 2**32))
def test_an_int8_rounded_at_random_is_within_a_scale(values, block_size, seed):
    scales = block_scales(values, block_size)
    integers = to_int8(values, scales, block_size, generator(seed)).astype(np.float64)
    scale = each(scales, block_size, len(values))
    assert (np.abs(integers) <= 127).all()
    assert (np.abs(scale * integers - values) <= scale).all()
    whole = values == scale * np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0))
    assert (scale * integers == values)[whole].all()


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.93])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_int8_rounded_at_random_is_right_in_the_mean(fraction, sign):
    count = 1 << 18
    values = np.full(count, sign * (3 + fraction))
    # The first number of each block makes its scale 1.
    values[::256] = 127
    integers = to_int8(values, block_scales(values, 256), 256, generator())
    drawn = np.delete(integers.reshape(-1, 256), 0, axis=1)
    bound = 5 * math.sqrt(fraction * (1 - fraction) / drawn.size)
    assert abs(drawn.mean(dtype=np.float64) - sign * (3 + fraction)) <= bound
    assert set(np.unique(drawn)) <= {sign * 3, sign * 4}


@given(narrow, st.sampled_from([("F16", 2.0**-10, 2.0**-24), ("BF16", 2.0**-7, 2.0**-133)]), st.integers(0, 2**32))
def test_a_half_rounded_at_random_is_one_of_the_neighbours(values, dtype, seed):
    name, relative, absolute = dtype
    half = round_to_half_at_random(values, name, generator(seed))
    back = halves(half, name)
    step = np.maximum(np.abs(values).astype(np.float64) * relative, absolute)
    assert (np.abs(back - values) < step).all()
    exact = halves(round_to_half(values, name), name) == values
    assert (back == values)[exact].all()


def halves(half, name):
    if name == "F16":
        return half.astype(np.float64)
    return (half.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("value", [1 + 2.0**-9 / 3, -3e-6, 2.0**-14 * 0.99999, 777.3, 2.0**-24 / 5, -1.5])
def test_a_half_rounded_at_random_is_right_in_the_mean(dtype, value):
    values = np.full(1 << 18, value, np.float32)
    back = halves(round_to_half_at_random(values, dtype, generator()), dtype)
    low, high = back.min(), back.max()
    part = 0.0 if low == high else (float(values[0]) - low) / (high - low)
    bound = 5 * (high - low) * math.sqrt(part * (1 - part) / len(values))
    assert len(np.unique(back)) <= 2
    assert abs(back.mean() - float(values[0])) <= bound


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
def test_what_half_precision_cannot_hold_is_rounded_to_nothing(dtype, value):
    values = np.full(1000, value, np.float32)
    assert round_to_half_at_random(values, dtype, generator()) is None


def test_scales_that_float32_cannot_hold_are_none():
    assert block_scales(np.array([1e41]), 16) is None
    assert block_scales(np.array([127 * float(np.finfo(np.float32).max)]), 16) is not None


@given(st.integers(0, 2**32), st.integers(0, 1500))
def test_every_pass_gives_the_same_bytes(seed, offset):
    rng = np.random.default_rng(seed)
    update = {n: np.asarray(t + rng.standard_normal(t.shape)).astype(t.dtype) for n, t in MODEL.items()}
    file = stream(update, MIXED)
    whole = content(file)
    assert len(whole) == file.size_bytes
    assert content(file, offset) == whole[offset:]
    assert content(file) == whole


def test_a_tensor_of_many_blocks_can_be_read_from_any_offset():
    count = 2 * BLOCK + 17
    model = {"w": np.zeros(count, np.float32)}
    update = {"w": np.random.default_rng(1).standard_normal(count).astype(np.float32)}
    for precision in ("INT8", "BFLOAT16", "FLOAT16"):
        file = stream(update, Transport(TensorPrecision(precision, stochastic_rounding=True)), model=model)
        whole = content(file)
        for offset in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 200, len(whole) - 1):
            assert content(file, offset) == whole[offset:]


def test_participants_round_independently_of_each_other():
    update = {"w": MODEL["w"] + np.float32(0.1) * np.sin(MODEL["w"])}
    transport = Transport(TensorPrecision("INT8", stochastic_rounding=True))
    first, second = (content(stream(update, transport)) for _ in range(2))
    assert first != second
    assert content(stream(update, transport, seed=5)) == content(stream(update, transport, seed=5))
    assert content(stream(update, transport, seed=5)) != content(stream(update, transport, seed=6))
    nearest = Transport(TensorPrecision("INT8"))
    assert content(stream(update, nearest)) == content(stream(update, nearest))


def test_the_file_has_the_tensors_that_the_rules_say():
    update = {name: np.asarray(tensor + 2).astype(tensor.dtype) for name, tensor in MODEL.items()}
    found = from_safetensors(content(stream(update, MIXED)), "torch")
    assert {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in found.items()
    } == {
        "w": ("int8", (20, 50)),
        "w.int8_scales": ("float32", (16,)),
        "wide": ("int8", (100,)),
        "wide.int8_scales": ("float32", (2,)),
        "scalar": ("bfloat16", ()),
        "empty": ("int8", (0, 3)),
        "empty.int8_scales": ("float32", (0,)),
        "bias": ("float32", (5,)),
        "half": ("float16", (3,)),
        "steps": ("int64", ()),
    }
    assert (found["w"] == 127).all()
    np.testing.assert_allclose(found["w.int8_scales"], 2 / 127, rtol=1e-6)
    assert found["bias"].tolist() == [3] * 5
    assert found["scalar"] == 2


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"wide": np.full(100, 1e300)}, "I8 cannot hold the difference of tensor 'wide'"),
        ({"w": np.full((20, 50), np.nan, np.float32)}, "I8 cannot hold the difference of tensor 'w'"),
        ({"w": MODEL["w"].T}, "'w' is not as in the model"),
    ],
)
def test_updates_that_cannot_be_sent_in_int8_are_rejected(update, text):
    with pytest.raises(NotRepresentable, match=text):
        content(stream({**MODEL, **update}, MIXED))


def test_a_nan_of_the_model_is_no_difference():
    model = {"mask": np.array([np.nan, -np.inf, 1], np.float32)}
    update = {"mask": np.array([np.nan, -np.inf, 2], np.float32)}
    found = from_safetensors(content(stream(update, Transport(TensorPrecision("INT8")), model=model)))
    assert found["mask"].tolist() == [0, 0, 127]


def test_a_payload_has_a_digest_of_the_bytes_that_are_sent():
    rng = np.random.default_rng(2)
    update = {**MODEL, "w": MODEL["w"] + rng.standard_normal((20, 50)).astype(np.float32)}
    shared = SharedFile(io.BytesIO(to_safetensors(MODEL)))
    payload = Payload.of_tensors(difference_sources(array_sources(update), shared, MIXED))
    whole = b"".join(chunk for chunk, _ in payload.chunks(0))
    assert len(whole) == payload.size_bytes < CHUNK
    assert b"".join(chunk for chunk, _ in payload.chunks(1000)) == whole[1000:]
