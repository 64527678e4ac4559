"""The gate that every file passes: what it lets in, and that nothing else gets in."""

import itertools
import json
import pickle
import struct
from functools import partial
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from fedround_server.domain.errors import ModelFormat, TensorsMismatch, UpdateMismatch
from fedround_server.domain.model import MAX_TENSORS, Dtype, TensorSpec
from fedround_server.engine.format.compare import check_same
from fedround_server.engine.format.gate import LARGE, MAX_HEADER, HeaderGate
from fedround_server.engine.format.header import read_header
from fedround_server.engine.format.manifest import (
    CACHED_BYTES,
    PREFIX,
    Layout,
    _parse_header,
    make_header,
    parse_header,
)
from unit.safetensors_files import NUMPY_DTYPES, entry, with_header

names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\\/\x7f"), min_size=1, max_size=40
).filter(lambda name: name not in ("..", "__metadata__"))
tensors = st.dictionaries(
    names,
    st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
    min_size=1,
    max_size=8,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


def parse(header: Any) -> Layout:
    return parse_header(json.dumps(header).encode())


def feed(data: bytes, chunk: int) -> Layout | None:
    gate = HeaderGate()
    for start in range(0, len(data), chunk):
        gate.feed(data[start : start + chunk])
    return gate.layout


@given(tensors, st.integers(1, 300))
def test_what_the_reference_writes_is_read_whatever_the_chunks(
    wanted: dict[str, tuple[str, tuple[int, ...]]], chunk: int
) -> None:
    arrays = {name: np.ones(shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in wanted.items()}
    data = safetensors.numpy.save(arrays, metadata={"format": "np"})
    layout = feed(data, chunk)
    assert layout is not None
    assert layout.manifest == {name: TensorSpec(Dtype[dtype], shape) for name, (dtype, shape) in wanted.items()}
    assert layout.size_bytes == len(data)
    for name, array in arrays.items():
        begin = layout.offsets[name]
        assert data[begin : begin + array.nbytes] == array.tobytes()


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    for whole in (data, with_header(data)):
        try:
            layout = feed(whole, 64)
        except ModelFormat:
            continue
        assert layout is None or layout.manifest


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4), st.sampled_from([None, 1]))
def test_what_is_read_is_what_the_json_says(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    try:
        found = read_header(text.encode(), 100)
    except ModelFormat:
        return
    value.pop("__metadata__", None)
    assert found == value


@given(json_values)
def test_any_json_is_read_or_rejected(value: Any) -> None:
    for header in (value, {"weight": value}, {"weight": entry("F32", [1], 0, 4), "bias": value}):
        try:
            layout = parse(header)
        except ModelFormat:
            continue
        check_sound(layout)


@given(tensors, st.data())
def test_a_changed_header_is_rejected_or_sound(
    wanted: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    arrays = {name: np.ones(shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in wanted.items()}
    file = bytearray(safetensors.numpy.save(arrays))
    length = struct.unpack("<Q", file[:8])[0]
    for _ in range(data.draw(st.integers(1, 5))):
        file[data.draw(st.integers(8, 7 + length))] = data.draw(st.integers(0, 255))
    try:
        layout = parse_header(bytes(file[8 : 8 + length]))
    except ModelFormat:
        return
    check_sound(layout)


def check_sound(layout: Layout) -> None:
    """The tensors tile the data: each byte behind the header belongs to exactly one of them."""
    position = layout.data_start
    for name in sorted(layout.offsets, key=layout.offsets.__getitem__):
        assert layout.offsets[name] == position
        position += layout.manifest[name].num_bytes
    assert position == layout.size_bytes
    assert layout.offsets.keys() == layout.manifest.keys() != set()


GOOD = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({}, "no tensors"),
        ({"__metadata__": {"format": "pt"}}, "no tensors"),
        ([], "not a JSON object"),
        ({"weight": 7}, "exactly dtype, shape and data_offsets"),
        ({"weight": {**GOOD, "extra": 1}}, "exactly dtype, shape and data_offsets"),
        ({"weight": {"dtype": "F32", "shape": [2]}}, "exactly dtype, shape and data_offsets"),
        ({"weight": entry("F4", [8], 0, 4)}, "accepted are F64, F32"),
        ({"weight": entry([], [8], 0, 8)}, "accepted are"),  # type: ignore[arg-type]
        ({"weight": entry("F32", [-2], 0, 8)}, "no acceptable shape"),
        ({"weight": entry("F32", [2.0], 0, 8)}, "no acceptable shape"),  # type: ignore[list-item]
        ({"weight": entry("F32", [True, 2], 0, 8)}, "no acceptable shape"),
        ({"weight": entry("F32", [1] * 17, 0, 4)}, "no acceptable shape"),
        ({"weight": entry("F32", [2**60], 0, 2**62)}, "no acceptable shape"),
        ({"weight": entry("F32", [2**40, 0, 2**40], 0, 0)}, "without zeros, have too large a product"),
        ({"weight": entry("F32", [2], 0, 7)}, "needs 8 bytes"),
        ({"weight": entry("F32", [2], 8, 0)}, "needs 8 bytes, its data_offsets give -8"),
        ({"weight": entry("F32", [2], 4, 12)}, "no holes, no overlaps"),
        ({"weight": GOOD, "bias": entry("F32", [2], 4, 12)}, "no holes, no overlaps"),
        ({"weight": GOOD, "bias": entry("F32", [2], 12, 20)}, "no holes, no overlaps"),
        ({"weight": GOOD, "bias": GOOD}, "no holes, no overlaps"),
        ({"": GOOD}, "tensor name ''"),
        ({"../../etc/passwd": GOOD}, "path tricks"),
        ({"/etc/passwd": GOOD}, "path tricks"),
        ({"a//b": GOOD}, "path tricks"),
        ({"a\\b": GOOD}, "path tricks"),
        ({"a\nb": GOOD}, "control characters"),
        ({"x" * 513: GOOD}, "1 to 512 characters"),
        ({f"t{number}": GOOD for number in range(MAX_TENSORS + 1)}, f"more than {MAX_TENSORS}"),
    ],
)
def test_a_hostile_header_is_rejected_with_its_reason(header: Any, why: str) -> None:
    with pytest.raises(ModelFormat, match=why):
        parse(header)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(GOOD).encode() + b"}", "something twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "something twice"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "not valid JSON"),
        (b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,8]}}', "no acceptable shape"),
        # Rejected before they are read to their end, where they are no JSON.
        (b'{"a":[' + b"{}," * 700_000, "more than 2048 characters"),
        (b'{"a":[' + b"[]," * 700_000 + b"[]]}", "more than 2048 characters"),
        (b'{"__metadata__":{"a":' + b"[" * 700_000, "not valid JSON"),
        (b'{"__metadata__":null}', "metadata is not a JSON object"),
        (b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(MAX_TENSORS + 2)) + b"}", "more than"),
        (b'{"a":[0.5,', "contains 0.5"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', "contains -0"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"a":' * 50_000, "more than 2048 characters"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', "more than 2048 characters"),
        (b'{"a":' + json.dumps(GOOD).encode() + b"}}", "not valid JSON"),
        (b'{"a":' + json.dumps(GOOD).encode() + b",}", "not valid JSON"),
        (b'{"a" ' + json.dumps(GOOD).encode() + b"}", "not valid JSON"),
    ],
    ids=[
        "twice",
        "twice inside",
        "NaN",
        "infinite",
        "many objects",
        "many lists",
        "lists as metadata",
        "no metadata",
        "much metadata",
        "fraction",
        "negative zero",
        "not UTF-8",
        "deep list",
        "deep object",
        "huge integer",
        "more behind the end",
        "comma at the end",
        "no colon",
    ],
)
def test_a_malformed_header_is_rejected_with_its_reason(header: bytes, why: str) -> None:
    with pytest.raises(ModelFormat, match=why):
        parse_header(header)


@given(st.integers(LARGE - 2, LARGE + 2), st.lists(st.integers(1, 2 * LARGE), max_size=5), st.booleans())
@settings(deadline=None)
def test_a_gate_knows_which_bytes_make_it_read_a_large_header(length: int, cuts: list[int], tiny: bool) -> None:
    data = with_header(json.dumps({"weight": GOOD}).encode().ljust(length), bytes(8))
    gate, heavy = HeaderGate(), 0
    for begin, end in itertools.pairwise(sorted({0, *(range(1, 12) if tiny else ()), *cuts, len(data)})):
        takes_long = gate.takes_long(data[begin:end])
        before = gate.layout
        gate.feed(data[begin:end])
        assert takes_long == (before is None and gate.layout is not None and length > LARGE)
        heavy += takes_long
    assert heavy == (length > LARGE)


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_of_no_reasonable_length_is_rejected_before_it_is_read(length: int) -> None:
    with pytest.raises(ModelFormat, match=f"would have {length} bytes"):
        HeaderGate().feed(length.to_bytes(8, "little"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_called_by_its_name(protocol: int) -> None:
    with pytest.raises(ModelFormat, match="unpickles nothing: run `fedround convert FILE`"):
        HeaderGate().feed(pickle.dumps({"weight": [0.0] * 10}, protocol=protocol))
    with pytest.raises(ModelFormat, match="unpickles nothing"):
        HeaderGate().feed(b"PK\x03\x04" + bytes(20))


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(length: int) -> None:
    header = json.dumps({"weight": GOOD}).encode().ljust(length)
    assert feed(with_header(header, bytes(8)), 100) is not None


def test_an_update_has_exactly_the_models_tensors() -> None:
    model = {"bias": TensorSpec(Dtype.F32, (2,)), "weight": TensorSpec(Dtype.F32, (2, 3))}
    check_same(dict(model), model)
    for update, why in (
        (
            {"bias": model["bias"]},
            "lacks tensors that the round asks for: 'weight'. .* create the training with trainable=",
        ),
        ({**model, "more": model["bias"]}, "that the round does not ask for: 'more'$"),
        ({"bias": model["bias"], "more": model["bias"]}, "asks for: 'weight'; and it has .* not ask for: 'more'$"),
    ):
        with pytest.raises(TensorsMismatch, match=why):
            check_same(update, model)
    for update, why in (
        (
            {**model, "weight": TensorSpec(Dtype.F32, (3, 2))},
            r"'weight' is F32\[3, 2\], and the round asks for F32\[2, 3\]",
        ),
        ({**model, "bias": TensorSpec(Dtype.F16, (2,))}, r"'bias' is F16\[2\], and the round asks for F32\[2\]"),
    ):
        with pytest.raises(UpdateMismatch, match=why):
            check_same(update, model)


@given(
    st.sets(st.text("abc.", min_size=1, max_size=4), min_size=1, max_size=30),
    st.sampled_from(["module.", "_orig_mod.", "module._orig_mod.", "net."]),
)
def test_a_prefix_of_all_names_is_found_with_the_way_to_remove_it(names: set[str], prefix: str) -> None:
    spec = TensorSpec(Dtype.F32, (2,))
    plain, prefixed = dict.fromkeys(names, spec), {prefix + name: spec for name in names}
    with pytest.raises(TensorsMismatch, match=r"lacks .*; and it has ") as raised:
        check_same(prefixed, plain)
    assert str(raised.value).endswith(f"remove it with fedround_client.strip_prefix(state_dict, {prefix!r})")
    with pytest.raises(TensorsMismatch, match=f"The names of the model begin with '{prefix}'"):
        check_same(plain, prefixed)


def test_missing_and_surplus_names_are_bounded() -> None:
    spec = TensorSpec(Dtype.F32, (2,))
    model, update = ({f"{name}{number}" * 100: spec for number in range(20_000)} for name in ("a", "b"))
    with pytest.raises(TensorsMismatch, match=r"and 19995 more; and .* and 19995 more$") as raised:
        check_same(update, model)
    assert len(str(raised.value)) < 1200


def test_a_gate_with_expectations_rejects_at_the_end_of_the_header() -> None:
    header = json.dumps({"weight": GOOD}).encode()
    HeaderGate(partial(check_same, expected={"weight": TensorSpec(Dtype.F32, (2,))})).feed(with_header(header))
    gate = HeaderGate(partial(check_same, expected={"weight": TensorSpec(Dtype.F32, (3,))}))
    gate.feed(with_header(header)[:-1])
    with pytest.raises(UpdateMismatch):
        gate.feed(with_header(header)[-1:])


def test_the_latest_layouts_are_cached_within_a_bound() -> None:
    def header(number: int) -> bytes:
        text = make_header({f"tensor {number}": TensorSpec(Dtype.F32, (1,))})[PREFIX:]
        return text.ljust(CACHED_BYTES // 4)

    _parse_header.cache_clear()
    first, second = parse_header(header(0)), parse_header(header(1))
    assert parse_header(header(0)) is first
    # A file of the server's own is checked less strictly.
    assert parse_header(header(1), own=True) is not second
    # Three fit, with what they say about their files; the one that was not asked for longest is dropped first.
    assert parse_header(header(0)) is first
    parse_header(header(2))
    assert parse_header(header(0)) is first
    assert parse_header(header(1)) is not second
    _parse_header.cache_clear()


def test_a_rejected_header_is_not_cached() -> None:
    _parse_header.cache_clear()
    for _ in range(2):
        with pytest.raises(ModelFormat):
            parse_header(b"{}")
    assert _parse_header.cache is not None
    assert len(_parse_header.cache) == 0
