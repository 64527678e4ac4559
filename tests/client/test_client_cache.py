"""Models that a participant has: found again, in memory and on disk, and never trusted without a look."""

import errno
import hashlib
import os

import numpy as np
import pytest

from client.rounds import Rounds, file_of, finished, info_of, round_started
from client.scripted import MODEL, OK, is_cancelled, piece
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround_client import ServerUnavailable
from fedround_client.cache import SPOOL_BYTES, CacheWriter, ModelCache
from fedround_client.tensors import to_safetensors

pytestmark = pytest.mark.timeout(30)


def digest(file):
    return hashlib.sha256(file).hexdigest()


def keep(cache, file):
    with cache.keeping(digest(file)) as kept:
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


def test_a_restarted_participant_finds_its_model(server, tmp_path):
    rounds = Rounds(server, cache=tmp_path / "models")
    rounds.play(1, 0)
    rounds.send(finished(2))
    rounds.result()
    rounds = Rounds(server, cache=tmp_path / "models")
    rounds.send(round_started(1, 0))
    rounds.training_is_at(0)
    np.testing.assert_array_equal(rounds.take_update()[1], [1, 1, 1])  # without a download
    rounds.send(finished(2))
    assert rounds.result().rounds == 1
    assert names(tmp_path / "models") == [f"{digest(file_of(0))}.safetensors"]


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    path = tmp_path / f"{digest(file_of(0))}.safetensors"
    path.write_bytes(file_of(1))
    rounds = Rounds(server, cache=tmp_path)
    np.testing.assert_array_equal(rounds.play(1, 0)[1], [1, 1, 1])
    rounds.send(finished(2))
    rounds.result()
    assert path.read_bytes() == file_of(0)


def test_rounds_go_on_where_nothing_can_be_kept(server, monkeypatch):
    def no_room(self, path):
        self.file = None

    monkeypatch.setattr(CacheWriter, "__init__", no_room)
    rounds = Rounds(server)
    rounds.play(1, 0)
    rounds.play(2, 1)
    rounds.send(finished(3))
    assert rounds.result().rounds == 2


def test_a_file_comes_back_from_its_beginning_each_time(cache):
    state = {"w": np.arange(2000, dtype=np.float32)}
    sha256 = keep(cache, to_safetensors(state))
    for _ in range(2):
        back = cache.load(sha256, "numpy")
        np.testing.assert_array_equal(back["w"], state["w"])
        back["w"] += 1
    assert cache.load(digest(b"another"), "numpy") is None


def test_what_failed_on_the_way_is_not_kept(cache, tmp_path):
    def half():
        with cache.keeping(digest(b"whole")) as kept:
            kept.write(b"wh")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        half()
    assert cache.open(digest(b"whole")) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_bytes_that_changed_are_not_taken(cache):
    file = to_safetensors({"w": np.zeros(2000, np.float32)})
    sha256 = keep(cache, file)
    held = cache.open(sha256)
    held.file.seek(5000)
    held.file.write(b"\xff")
    assert cache.load(sha256, "numpy") is None
    assert cache.load(keep(cache, file), "numpy")["w"].sum() == 0


def test_those_unused_for_longest_go_first(tmp_path):
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


def test_what_a_killed_process_left_counts_and_goes(tmp_path):
    left = tmp_path / f"{'a' * 64}.safetensors.{'0' * 32}"
    left.write_bytes(bytes(5000))
    os.utime(left, (1000, 1000))
    cache = ModelCache(tmp_path, max_bytes=5000)
    keep(cache, to_safetensors({"w": np.zeros(100, np.float32)}))
    assert not left.exists()
    cache.close()


@pytest.mark.parametrize("size", [10, SPOOL_BYTES + 1])
def test_a_full_disk_keeps_nothing_and_says_so(tmp_path, monkeypatch, caplog, size):
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


def test_a_file_that_is_here_is_not_fetched_again(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(file_of(4))
    before = target.stat()
    call = server.run(server.client.download_model, MODEL, to=target)
    request, rpc = server.stream("DownloadModel")
    assert request.have_sha256 == digest(file_of(4))
    rpc.send_response(DownloadModelResponse(info=info_of(4, file_of(4)), unchanged=True))
    assert call.result(10) == target
    assert target.stat() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_server_that_sends_what_is_here_is_not_listened_to(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(file_of(4))
    call = server.run(server.client.download_model, MODEL, to=target)
    _, rpc = server.stream("DownloadModel")
    rpc.send_response(piece(DownloadModelResponse, file_of(4)[:40], info=info_of(4, file_of(4))))
    assert call.result(10) == target
    assert is_cancelled(rpc)
    assert target.read_bytes() == file_of(4)


def test_unchanged_is_believed_of_the_same_file_only(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"another")
    call = server.run(server.client.download_model, MODEL, to=target)
    for _ in range(8):
        _, rpc = server.stream("DownloadModel")
        rpc.send_response(DownloadModelResponse(info=info_of(4, file_of(4)), unchanged=True))
        rpc.terminate(*OK)
    assert isinstance(call.exception(10), ServerUnavailable)
    assert target.read_bytes() == b"another"
