"""The cache of model files, in memory and on disk."""

import errno
import gc
import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from client.rounds import Rounds, file_of, finished, round_started
from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_FLOAT16, Aggregation, QFedAvg
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE
from fedround_client.cache import SPOOL_BYTES, CacheWriter, ModelCache, SharedFile
from fedround_client.round_request import needs_model_again
from fedround_client.tensors import to_safetensors

pytestmark = pytest.mark.timeout(30)


def digest(file):
    return hashlib.sha256(file).hexdigest()


def keep(cache, file):
    with cache.writer(digest(file)) as kept:
        for start in range(0, len(file), 1000):
            kept.write(file[start : start + 1000])
    return digest(file)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["in a folder", "without a name"])
def cache(request, tmp_path):
    made = ModelCache(tmp_path / "models" if request.param == "in a folder" else None)
    yield made
    made.close()


def test_a_restarted_participant_uses_the_cached_model(server, tmp_path):
    rounds = Rounds(server, cache=tmp_path / "models")
    rounds.run_round(1, 0)
    rounds.send(finished(2))
    rounds.result()
    rounds = Rounds(server, cache=tmp_path / "models")
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    np.testing.assert_array_equal(rounds.take_update()[1], [1, 1, 1])  # without a download
    rounds.send(finished(2))
    assert rounds.result().rounds == 1
    assert names(tmp_path / "models") == [f"{digest(file_of(0))}.safetensors"]


def test_a_damaged_file_is_downloaded_again(server, tmp_path):
    path = tmp_path / f"{digest(file_of(0))}.safetensors"
    path.write_bytes(file_of(1))
    rounds = Rounds(server, cache=tmp_path)
    np.testing.assert_array_equal(rounds.run_round(1, 0)[1], [1, 1, 1])
    rounds.send(finished(2))
    rounds.result()
    assert path.read_bytes() == file_of(0)


def test_rounds_continue_without_a_cache(server, monkeypatch):
    def no_room(self, path):
        self.file = None

    monkeypatch.setattr(CacheWriter, "__init__", no_room)
    rounds = Rounds(server)
    rounds.run_round(1, 0)
    rounds.run_round(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 2


def test_a_cached_file_can_be_loaded_repeatedly(cache):
    state = {"w": np.arange(2000, dtype=np.float32)}
    sha256 = keep(cache, to_safetensors(state))
    for _ in range(2):
        back = cache.load(sha256, "numpy")
        np.testing.assert_array_equal(back["w"], state["w"])
        back["w"] += 1
    assert cache.load(digest(b"another"), "numpy") is None


def test_a_failed_download_is_not_cached(cache, tmp_path):
    def half():
        with cache.writer(digest(b"whole")) as kept:
            kept.write(b"wh")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        half()
    assert cache.open(digest(b"whole")) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damaged_bytes_are_not_loaded(cache):
    file = to_safetensors({"w": np.zeros(2000, np.float32)})
    sha256 = keep(cache, file)
    held = cache.open(sha256)
    held.file.seek(5000)
    held.file.write(b"\xff")
    assert cache.load(sha256, "numpy") is None
    assert cache.load(keep(cache, file), "numpy")["w"].sum() == 0


def test_the_least_recently_used_files_are_evicted_first(tmp_path):
    files = [to_safetensors({"w": np.full(1000, value, np.float32)}) for value in range(4)]
    cache = ModelCache(tmp_path, max_bytes=3 * len(files[0]))
    others = ["mine.safetensors", "notes.txt"]
    for name in others:
        (tmp_path / name).write_bytes(bytes(100_000))
    first, second, third = (keep(cache, file) for file in files[:3])
    for age, sha256 in enumerate((first, second, third)):
        os.utime(tmp_path / f"{sha256}.safetensors", (1000 + age, 1000 + age))
    assert cache.load(first, "numpy") is not None
    fourth = keep(cache, files[3])
    assert names(tmp_path) == sorted([*(f"{one}.safetensors" for one in (first, third, fourth)), *others])
    cache.close()
    small = ModelCache(tmp_path, max_bytes=1)
    last = keep(small, files[1])
    assert names(tmp_path) == sorted([f"{last}.safetensors", *others])
    small.close()


def test_files_of_a_killed_process_are_evicted(tmp_path):
    left = tmp_path / f"{'a' * 64}.safetensors.{'0' * 32}"
    left.write_bytes(bytes(5000))
    os.utime(left, (1000, 1000))
    cache = ModelCache(tmp_path, max_bytes=5000)
    keep(cache, to_safetensors({"w": np.zeros(100, np.float32)}))
    assert not left.exists()
    cache.close()


@pytest.mark.parametrize("size", [10, SPOOL_BYTES + 1])
def test_a_full_disk_is_logged_and_nothing_is_cached(tmp_path, monkeypatch, caplog, size):
    kept = CacheWriter(tmp_path / "file")

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    kept.file.close()
    kept.file = Full()
    kept.write(bytes(size))
    kept.write(b"more")
    kept.rename(tmp_path / "other")
    assert kept.file is None
    (record,) = caplog.records
    assert "No space left" in record.getMessage()


@pytest.fixture
def _windows(monkeypatch):
    """Files that this process has open can neither be renamed, nor replaced, nor removed."""

    def is_open(path):
        if not Path(path).exists():
            return False
        return any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir())

    def forbid(name):
        real = getattr(os, name)

        def call(*paths, **options):
            if any(is_open(path) for path in paths):
                raise PermissionError(13, "The process cannot access the file because it is being used")
            return real(*paths, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("rename", "replace", "unlink", "remove"):
        forbid(name)


@pytest.mark.usefixtures("_windows")
def test_no_open_file_is_renamed_or_removed(server, tmp_path, caplog):
    rounds = Rounds(server, cache=tmp_path, cache_bytes=1)
    for number in range(3):
        rounds.run_round(number + 1, number)
    rounds.send(finished(4))
    assert rounds.result().rounds == 3
    assert names(tmp_path) == [f"{digest(file_of(2))}.safetensors"]
    assert caplog.records == []


@pytest.mark.usefixtures("_windows")
def test_a_file_that_another_participant_reads_stays(tmp_path, caplog):
    file = to_safetensors({"w": np.zeros(100, np.float32)})
    first, second = ModelCache(tmp_path), ModelCache(tmp_path)
    sha256 = keep(first, file)
    assert keep(second, file) == sha256
    assert second.load(sha256, "numpy") is not None
    assert names(tmp_path) == [f"{sha256}.safetensors"]
    assert caplog.records == []
    first.close()
    second.close()


@pytest.mark.usefixtures("_windows")
def test_a_damaged_file_that_another_participant_reads_is_not_used(tmp_path, caplog):
    file = to_safetensors({"w": np.zeros(100, np.float32)})
    path = tmp_path / f"{digest(file)}.safetensors"
    path.write_bytes(b"damaged")
    cache = ModelCache(tmp_path)
    with path.open("rb"):
        keep(cache, file)
        assert cache.load(digest(file), "numpy") is None
    assert "is not cached" in caplog.text


@pytest.mark.usefixtures("_windows")
def test_files_in_use_do_not_keep_others_from_being_evicted(tmp_path):
    files = [to_safetensors({"w": np.full(1000, value, np.float32)}) for value in range(3)]
    for age, file in enumerate(files[:2]):
        path = tmp_path / f"{digest(file)}.safetensors"
        path.write_bytes(file)
        os.utime(path, (1000 + age, 1000 + age))
    with (tmp_path / f"{digest(files[1])}.safetensors").open("rb"):
        last = keep(ModelCache(tmp_path, max_bytes=1), files[2])
    assert names(tmp_path) == sorted(f"{one}.safetensors" for one in (digest(files[1]), last))


def test_a_file_in_a_cycle_is_closed_before_it_is_finalized():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        cycle = [SharedFile(tempfile.SpooledTemporaryFile(max_size=1))]  # noqa: SIM115 - the shared file closes it
        cycle.append(cycle)
        cycle[0].file.write(b"more than it keeps in memory")
        del cycle
        gc.collect()
    assert [str(one.message) for one in found] == []


def test_a_large_model_is_kept_in_a_temporary_file_only_if_it_is_read_again(cache):
    with cache.writer(digest(b"file"), is_read_again=False) as writer:
        writer.write(b"file")
    assert (cache.open(digest(b"file")) is not None) == (cache._folder is not None)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({}, False),
        ({"metric_names": ["loss"]}, True),
        ({"kind": ROUND_KIND_EVALUATE}, True),
        ({"trainable": ["*"]}, True),
        ({"attempt": 2}, True),
        ({"update_precision": UPDATE_PRECISION_FLOAT16}, True),
        ({"aggregation": Aggregation(q_fed_avg=QFedAvg())}, True),
    ],
)
def test_which_rounds_need_their_model_again(options, again):
    assert needs_model_again(round_started(1, 0, **options).round_started) == again
