"""Files that an engine reads are verified block by block: no damaged byte gets into a result."""

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregations import FED_AVG
from damage import flip
from fedround_server.blobs import BLOCK_BYTES, BlobDamaged
from fedround_server.domain.model import BlobRef
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format.tensors import TensorFile, open_blob
from fedround_server.engine.format.verification import SEGMENT_BYTES, Verifier, reading_ahead
from fedround_server.engine.jobs import AggregationJob
from unit.checks import check_numbers
from unit.paths import Paths, at
from unit.safetensors_files import write

SIZE = 2 * SEGMENT_BYTES + BLOCK_BYTES + 10
AHEAD = pytest.mark.parametrize("thread", [nullcontext, reading_ahead], ids=["itself", "a thread"])


def digest(path: Path) -> BlobRef:
    """The reference to a file of an earlier version, which has no checksums."""
    return BlobRef(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(1).bytes(SIZE))
    return path


@AHEAD
@pytest.mark.parametrize("position", [0, BLOCK_BYTES, SEGMENT_BYTES - 1, 2 * SEGMENT_BYTES, SIZE - 1])
def test_a_damaged_segment_is_found_when_it_is_used(file: Path, position: int, thread: Any) -> None:
    blob = at(file)
    flip(file, position)
    damaged = position // SEGMENT_BYTES
    with thread() as ahead, Verifier(file, blob, ahead) as verifier:
        for segment in range(-(-SIZE // SEGMENT_BYTES)):
            start, end = segment * SEGMENT_BYTES, min((segment + 1) * SEGMENT_BYTES, SIZE)
            for _ in range(2):
                if segment == damaged:
                    with pytest.raises(
                        BlobDamaged, match=f"between the bytes {position // BLOCK_BYTES * BLOCK_BYTES} and"
                    ):
                        verifier.verify(start, end)
                else:
                    verifier.verify(start, end)
        with pytest.raises(BlobDamaged):
            verifier.verify(0, SIZE)


@AHEAD
def test_segments_may_be_used_in_any_order(file: Path, thread: Any) -> None:
    with thread() as ahead, Verifier(file, at(file), ahead) as verifier:
        for start in (2 * SEGMENT_BYTES + 1, 5, SEGMENT_BYTES):
            verifier.verify(start, start + 5)


def test_a_file_without_checksums_is_verified_at_once(file: Path) -> None:
    blob = digest(file)
    with Verifier(file, blob) as verifier:
        verifier.verify(0, SIZE)
    flip(file, -1)
    with pytest.raises(BlobDamaged, match="SHA-256"):
        Verifier(file, blob)


def test_a_file_that_the_disk_cannot_read_is_damaged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    with Verifier(file, at(file)) as verifier:
        monkeypatch.setattr("os.pread", fail)
        with pytest.raises(BlobDamaged, match="the disk reports an error"):
            verifier.verify(0, 1)


def model(folder: Path, name: str, value: float) -> Path:
    path = folder / name
    path.write_bytes(write({"a": np.full(900_000, value, np.float32), "b": np.full(300_000, value, np.float64)}))
    return path


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("position", [3, 200, 2_000_000, -1])
def test_no_model_is_made_of_a_damaged_file(tmp_path: Path, which: int, position: int) -> None:
    paths = [model(tmp_path, str(number), number) for number in range(3)]
    base, *updates = map(at, paths)
    job = AggregationJob(base, tuple(updates), (1, 1), FED_AVG)
    made = aggregate(Paths(tmp_path), job, tmp_path / "made")
    assert isinstance(made.made, BlobRef)
    path = tmp_path / "made"
    with TensorFile(path, verifier=Verifier(path, replace(made.made, sha256=""))) as after:
        assert after.tensor("b").unique().tolist() == [1.5]
    flip(paths[which], position)
    with pytest.raises(BlobDamaged) as raised:
        aggregate(Paths(tmp_path), job, tmp_path / "other")
    assert raised.value.sha256 == str(paths[which])


def test_an_update_is_not_compared_with_a_damaged_model(tmp_path: Path) -> None:
    origin, update = model(tmp_path, "origin", 1), model(tmp_path, "update", 2)
    stored = at(origin)
    assert check_numbers(update, origin, origin_blob=stored).norm == check_numbers(update, origin).norm
    flip(origin, -1)
    with pytest.raises(BlobDamaged):
        check_numbers(update, origin, origin_blob=stored)


def test_what_is_not_read_is_not_verified(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(write({"a": np.zeros(SEGMENT_BYTES, np.uint8), "b": np.zeros(SEGMENT_BYTES, np.uint8)}))
    blob = at(path)
    flip(path, -1)
    with open_blob(Paths(tmp_path), blob) as file:
        file.tensor("a")
        with pytest.raises(BlobDamaged):
            file.tensor("b")
