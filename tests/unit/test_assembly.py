"""A base and a delta make the same file, byte for byte, as one that is written whole."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from aggregations import FED_AVG
from damage import flip
from fedround_server.blobs import BLOCK_BYTES, BlobDamaged, BlockChecksums
from fedround_server.blobs.files import LocalFiles
from fedround_server.domain.model import BaseAndDelta, BlobRef, VersionFile
from fedround_server.domain.tensor_selection import TensorSelection, matcher
from fedround_server.engine import result
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.check import check_numbers
from fedround_server.engine.format.assembly import Assembly, assemble
from fedround_server.engine.format.versions import open_version
from fedround_server.engine.jobs import AggregationJob
from unit.safetensors_files import write

State = dict[str, np.ndarray]
dtypes = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "u1", "?"])
states = st.dictionaries(
    st.sampled_from(["a", "a.b", "b", "c.lora", "d", "e.lora", "z"]),
    st.builds(lambda dtype, size: np.arange(size).astype(dtype), dtypes, st.integers(0, 9)),
    min_size=1,
)


@dataclass(frozen=True)
class Store:
    """Files by digest."""

    files: LocalFiles

    def put(self, data: bytes) -> BlobRef:
        checksums = BlockChecksums()
        checksums.update(data)
        blob = BlobRef(hashlib.sha256(data).hexdigest(), len(data), checksums.digest())
        path = self.files.local_path(blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return blob

    def aggregate(self, model: VersionFile, updates: list[bytes], selection: TensorSelection) -> VersionFile:
        """Aggregates, and stores what was made."""
        blobs = tuple(map(self.put, updates))
        job = AggregationJob(model, blobs, (1,) * len(blobs), FED_AVG, tensors=selection)
        target = self.files.tmp / str(uuid4())
        made = aggregate(self.files, job, target).made
        assert self.put(target.read_bytes()) == (made if isinstance(made, BlobRef) else made.delta)
        return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    files = LocalFiles(tmp_path)
    files.tmp.mkdir()
    return Store(files)


def read(store: Store, assembly: Assembly, offset: int = 0) -> bytes:
    with assembly.open(store.files, offset) as reader:
        chunks = list(iter(reader.read, (b"", 0)))
    assert all(len(chunk.data) <= BLOCK_BYTES for chunk in chunks)
    return b"".join(chunk.data for chunk in chunks)


def whole(base: State, delta: State) -> bytes:
    """The file of a version as it is defined, written at once."""
    kept = {name: tensor for name, tensor in base.items() if name not in delta}
    data = write(kept | delta)
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode().replace(", ", ",").replace(": ", ":")
    padded = header + " " * (-len(header) % 8)
    return len(padded).to_bytes(8, "little") + padded.encode() + data[8 + int.from_bytes(data[:8], "little") :]


@given(states, st.data())
@settings(max_examples=60)
def test_the_assembled_file_is_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, base: State, data: st.DataObject
) -> None:
    store = Store(LocalFiles(tmp_path_factory.mktemp("files")))
    names = data.draw(st.lists(st.sampled_from(sorted(base)), min_size=1, unique=True))
    delta = {name: (base[name] + 1).astype(base[name].dtype) for name in names}
    expected = whole(base, delta)
    file = BaseAndDelta("", len(expected), store.put(write(base)), store.put(write(delta)))
    assembly = assemble(store.files, file)
    assert assembly.size_bytes == len(expected)
    assert read(store, assembly) == expected
    offset = data.draw(st.integers(0, len(expected)))
    assert read(store, assembly, offset) == expected[offset:]
    globs = tuple(data.draw(st.lists(st.sampled_from(["a*", "*lora", "z", "?"]), min_size=1, max_size=2)))
    chosen = matcher(globs)
    wanted = {name: tensor for name, tensor in (base | delta).items() if chosen(name)}
    if not wanted:
        with pytest.raises(KeyError):
            assemble(store.files, file, globs)
        return
    found = load(read(store, assemble(store.files, file, globs)))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    with open_version(store.files, file) as merged:
        for name, tensor in (base | delta).items():
            assert np.array_equal(merged.tensor(name).numpy(), tensor)


@pytest.mark.parametrize("trainable", [("*.lora",), ("a", "z"), ("[!d]*",)])
def test_versions_are_those_of_whole_files(store: Store, trainable: tuple[str, ...]) -> None:
    model = {name: np.arange(6, dtype=np.float32) + n for n, name in enumerate(["a", "b.lora", "c", "d.lora", "z"])}
    model |= {"steps": np.array([3], np.int64)}
    first = save(model, {"format": "pt"})
    selection = TensorSelection((*trainable, "steps"))
    version: VersionFile = store.put(first)
    plain: VersionFile = version
    for number in range(3):
        # Of integers that differ, the digests of the files would decide.
        states = [{n: t + number + (one if t.dtype.kind == "f" else 0) for n, t in model.items()} for one in (1, 2)]
        updates = [{n: t for n, t in state.items() if matcher(selection.trainable)(n)} for state in states]
        version = store.aggregate(version, [save(update) for update in updates], selection)
        plain = store.aggregate(plain, [save(state) for state in states], TensorSelection())
        assert isinstance(version, BaseAndDelta)
        assert version.base == store.put(first)
        assembled = read(store, assemble(store.files, version))
        assert (hashlib.sha256(assembled).hexdigest(), len(assembled)) == (version.sha256, version.size_bytes)
        assert b'"__metadata__":{"format":"pt"}' in assembled[:100]
        assert isinstance(plain, BlobRef)
        averaged = load(store.files.local_path(plain).read_bytes())
        found = load(assembled)
        for name, tensor in model.items():
            trained = matcher(selection.trainable)(name)
            np.testing.assert_array_equal(found[name], averaged[name] if trained else tensor)
            assert found[name].dtype == tensor.dtype


def test_another_selection_inherits_the_tensors_of_the_delta(store: Store) -> None:
    model = {name: np.zeros(4, np.float32) for name in "abcd"}
    version = store.aggregate(store.put(save(model)), [save({"a": model["a"] + 1})], TensorSelection(("a",)))
    again = store.aggregate(version, [save({"b": model["b"] + 2})], TensorSelection(("b",)))
    assert isinstance(version, BaseAndDelta)
    assert isinstance(again, BaseAndDelta)
    assert again.base == version.base
    assert set(load(store.files.local_path(again.delta).read_bytes())) == {"a", "b"}
    found = load(read(store, assemble(store.files, again)))
    assert {name: tensor[0] for name, tensor in found.items()} == {"a": 1, "b": 2, "c": 0, "d": 0}
    # Without a selection, the next version is a whole file again.
    last = store.aggregate(again, [save({n: t + 5 for n, t in model.items()})], TensorSelection())
    assert isinstance(last, BlobRef)
    assert {name: tensor[0] for name, tensor in load(store.files.local_path(last).read_bytes()).items()} == {
        "a": 5,
        "b": 5,
        "c": 5,
        "d": 5,
    }
    everything = store.aggregate(again, [save(dict(model))], TensorSelection(("?",)))
    assert isinstance(everything, BlobRef)
    # A round without examples makes a copy.
    assert store.aggregate(again, [], TensorSelection(("b",))) == again


def test_the_base_is_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Assembly] = []
    open_: Callable[..., Any] = Assembly.open
    monkeypatch.setattr(Assembly, "open", lambda self, *rest: opened.append(self) or open_(self, *rest))
    result._hashes.clear()
    model = {"a": np.zeros(5, np.float32), "b": np.zeros(5, np.float32)}
    version: VersionFile = store.put(save(model))
    for number in range(4):
        version = store.aggregate(version, [save({"b": model["b"] + number})], TensorSelection(("b",)))
    assert len(opened) == 1


@pytest.mark.parametrize("part", ["base", "delta"])
def test_damage_of_either_file_is_found(store: Store, part: str) -> None:
    base = {"a": np.zeros(BLOCK_BYTES, np.float32), "b": np.zeros(BLOCK_BYTES, np.float32)}
    version = store.aggregate(store.put(save(base)), [save({"b": base["b"] + 1})], TensorSelection(("b",)))
    assert isinstance(version, BaseAndDelta)
    blob: BlobRef = getattr(version, part)
    path = store.files.local_path(blob)
    intact = read(store, assemble(store.files, version))
    # The last byte of a base is not part of the whole: tensor b of the base is replaced.
    flip(path, BLOCK_BYTES if part == "base" else -1)
    assembly = assemble(store.files, version)
    with pytest.raises(BlobDamaged, match="is damaged between the bytes") as caught:
        read(store, assembly)
    assert caught.value.sha256 == blob.sha256
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BlobDamaged, match="bytes instead of"):
        read(store, assembly)
    path.unlink()
    with pytest.raises(BlobDamaged, match="is missing"):
        assemble(store.files, version)
    assert len(intact) == version.size_bytes


def test_updates_are_compared_with_a_base_and_a_delta(store: Store, tmp_path: Path) -> None:
    model = {"a": np.zeros(4, np.float32), "b": np.array([0, np.inf], np.float32), "c": np.zeros(4, np.float32)}
    version = BaseAndDelta("", 0, store.put(save(model)), store.put(save({"c": model["c"] + 3})))
    update = tmp_path / "update"
    update.write_bytes(save({"c": model["c"] + 5, "b": model["b"]}))
    with open_version(store.files, version) as opened:
        assert check_numbers(update, model=opened).not_finite is None
        assert check_numbers(update).not_finite == "b"
        assert check_numbers(update, opened, model=opened).norm == 4.0
