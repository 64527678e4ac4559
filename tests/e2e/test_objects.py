"""Servers whose files are in an object store, a real one."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from chaos.proxy import Fate, Proxy
from damage import flip, stored
from e2e.federation import federation, plus_one
from e2e.object_store import Store, copy, refused
from fedround_server.blobs.objects import BucketUnusable, BucketUrl, check_bucket
from fedround_server.blobs.objects.layout import OBJECTS, PART_BYTES, UPLOADS
from fedround_server.config import Settings
from fedround_server.doctor.__main__ import check
from fedround_server.doctor.objects import check_objects
from forked import run
from seaweed import KEY, SECRET, seaweed
from servers import MODULE, Server

LARGE = {"w": np.arange(3 * PART_BYTES // 4, dtype=np.float32)}
"""A model of some parts."""
UNREACHABLE = "there is no connection to its endpoint"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in seaweed().environment().items():
        monkeypatch.setenv(name, value)
    return Store()


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[Server]:
    options = ("--objects", store.url, "--log-level", "debug")
    with Server(tmp_path / "data", options=options, program=MODULE) as running:
        yield running
    assert SECRET not in running.log
    assert KEY not in running.log


def test_a_training_goes_on_behind_a_restart_in_the_middle_of_a_round(server: Server, store: Store) -> None:
    zeros = {"w": np.zeros_like(LARGE["w"])}
    with federation(server, 2) as group:
        training = group.actor.create_training(zeros, name="t", target_num_updates=1, client_ids=group.ids)
        group.actor.start_training(training.training_id)
        with group.connect(0) as client:
            client.submit_update(training.training_id, 0, LARGE, 1)
        server.stop()
        # What another machine would not have.
        shutil.rmtree(server.data_dir / "cache")
        server.start()
        with group.connect(1) as client:
            client.submit_update(training.training_id, 0, {"w": 3 * LARGE["w"]}, 1)
        group.actor.wait(training.training_id, 200)
        assert np.array_equal(group.actor.download_model(training.model_id)["w"], 2 * LARGE["w"])
        # Small ones, and a second round that reads the version of the first.
        made = group.run(lambda _: (plus_one,), {"w": np.zeros(10, np.float32)}, target_num_updates=2)
        assert set(group.actor.download_model(made.model_id)["w"]) == {2}
    assert not list(server.data_dir.glob("objects/*"))
    assert len(store.entries()) >= 4
    assert store.entries(UPLOADS) == []
    with fr.connect(server.address, server.admin_token) as admin:
        assert admin.server_status().disk.stored_bytes > 3 * 3 * PART_BYTES


def test_an_upload_goes_on_with_what_is_in_the_bucket(server: Server, store: Store) -> None:
    before: list[int] = []
    after: list[int] = []

    def progress(done: int, total: int) -> None:
        if after or (before and before[-1] >= total // 2):
            after.append(done)
            return
        before.append(done)
        if done >= total // 2:
            until(lambda: store.entries(UPLOADS))
            server.kill()
            for name in ("cache", "uploads", "tmp"):
                shutil.rmtree(server.data_dir / name)
            server.start()

    with federation(server, 0) as group:
        model = group.actor.upload_model(LARGE, progress=progress)
        assert np.array_equal(group.actor.download_model(model.model_id)["w"], LARGE["w"])
    assert after[0] >= PART_BYTES


@pytest.mark.parametrize("point", ["object.part_put", "object.parts_marked", "object.put"])
def test_a_server_that_is_killed_at_a_failpoint_loses_nothing(store: Store, tmp_path: Path, point: str) -> None:
    options = ("--objects", store.url)
    with Server(tmp_path / "data", options=options, program=MODULE) as server, federation(server, 2) as group:
        training = group.actor.create_training(
            {"w": np.zeros_like(LARGE["w"])}, name="t", target_num_updates=1, client_ids=group.ids
        )
        group.actor.start_training(training.training_id)
        with group.connect(0) as client:
            client.submit_update(training.training_id, 0, LARGE, 1)
        server.stop()
        server.variables = {"FEDROUND_FAILPOINT": point}
        server.start()
        ends = threading.Thread(target=_restart_when_killed, args=(server,))
        ends.start()
        with group.connect(1) as client:
            client.submit_update(training.training_id, 0, {"w": 3 * LARGE["w"]}, 1)
        ends.join()
        group.actor.wait(training.training_id, 200)
        assert np.array_equal(group.actor.download_model(training.model_id)["w"], 2 * LARGE["w"])


def _restart_when_killed(server: Server) -> None:
    server.wait()
    server.variables = {}
    server.start()


def test_an_outage_of_the_store_delays_a_round_and_is_logged_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    model = {"w": np.zeros(10, np.float32)}
    with Proxy(seaweed().endpoint.removeprefix("http://"), lambda _: Fate(lives=0 if away.is_set() else None)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        options = ("--objects", store.url)
        with (
            Server(tmp_path / "data", options=options, program=MODULE) as server,
            federation(server, 2) as group,
            ThreadPoolExecutor(1) as pool,
            group.connect(0) as first,
            group.connect(1) as second,
        ):
            training = group.actor.create_training(model, name="t", target_num_updates=1, client_ids=group.ids)
            group.actor.start_training(training.training_id)
            first.submit_update(training.training_id, 0, {"w": model["w"] + 1}, 1)
            away.set()
            proxy.cut()
            sent = pool.submit(second.submit_update, training.training_id, 0, {"w": model["w"] + 3}, 1)
            until(lambda: "the object store cannot be used" in server.log)
            # What it has a copy of can be downloaded.
            assert not group.actor.download_model(training.model_id)["w"].any()
            away.clear()
            sent.result(100)
            group.actor.wait(training.training_id, 100)
            assert set(group.actor.download_model(training.model_id)["w"]) == {2}
    assert server.log.count("the object store cannot be used") == 1
    assert server.log.count("the object store answers again") == 1


def test_a_store_that_hangs_is_logged_while_an_upload_waits_for_it(server: Server) -> None:
    def create() -> None:
        group.actor.create_training({"w": np.zeros(4, np.float32)}, name="t", target_num_updates=1)

    with federation(server, 1) as group, ThreadPoolExecutor(1) as pool:
        seaweed().send(signal.SIGSTOP)
        try:
            created = pool.submit(create)
            line = "the object store cannot be used: it does not answer; uploads"
            until(lambda: created.done() or line in server.log)
            # Before the request has failed.
            assert not created.done()
        finally:
            seaweed().send(signal.SIGCONT)
        created.result()
    assert server.log.count("the object store cannot be used") == 1
    assert server.log.count("the object store answers again") == 1


def test_files_are_copied_into_a_bucket_and_back(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "data"
    with Server(data_dir) as server, federation(server, 1) as group:
        model = group.actor.upload_model(LARGE)
        made = group.run(lambda _: (plus_one,), {"w": np.zeros(10, np.float32)}, target_num_updates=2)
        token = group.actor_token
        code, said = copy(capfd, data_dir, store.url)
        assert (code, said) == (
            1,
            f"error: a server uses {data_dir}: stop it first, so that no file comes after the copy\n",
        )
    files = {path.name: path.stat().st_size for path in data_dir.glob("objects/*/*")}

    def check(server: Server) -> None:
        with fr.connect(server.address, token) as actor:
            assert np.array_equal(actor.download_model(model.model_id)["w"], LARGE["w"])
            assert set(actor.download_model(made.model_id)["w"]) == {2}

    # Not before they are there.
    failed = run("--listen", "127.0.0.1:0", "--data-dir", data_dir, "--objects", store.url)
    assert failed.returncode == 1
    assert f"`fedround objects copy {data_dir} {store.url}`" in failed.stderr
    # One is damaged.
    flip(stored(data_dir, model.sha256), 100)
    code, said = copy(capfd, data_dir, store.url)
    assert code == 1
    assert f"error: the file objects/{model.sha256[:2]}/{model.sha256} is damaged" in said
    flip(stored(data_dir, model.sha256), 100)
    code, said = copy(capfd, data_dir, store.url)
    assert code == 0
    assert f"Copied 1 files of {files[model.sha256]:,} bytes; {len(files) - 1} were there.\n" in said
    assert f"Next: start the server with --objects {store.url}\n" in said
    assert copy(capfd, data_dir, store.url, "--verify", "--format", "json") == (
        0,
        f'{{\n  "num_copied": 0,\n  "bytes_copied": 0,\n  "num_present": {len(files)},\n  "problems": []\n}}\n',
    )

    failed = run("--listen", "127.0.0.1:0", "--data-dir", data_dir)
    assert failed.returncode == 1
    assert f"set --objects {store.url}, or copy them into the directory" in failed.stderr
    command = [sys.executable, "-m", "fedround_server.backup", "backup", "--data-dir", str(data_dir)]
    backup = subprocess.run([*command, "--output", str(tmp_path / "b")], capture_output=True, text=True, check=False)
    assert backup.returncode == 1
    assert f"the files of this server are in {store.url}: back up the database with its own tools" in backup.stderr
    shutil.rmtree(data_dir / "objects")
    with Server(data_dir, options=("--objects", store.url), program=MODULE) as server:
        check(server)

    code, said = copy(capfd, store.url, data_dir)
    assert code == 0
    assert f"Copied {len(files)} files" in said
    assert {path.name: path.stat().st_size for path in data_dir.glob("objects/*/*")} == files
    with Server(data_dir) as server:
        check(server)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("a", "b"), "one of FROM and TO must be a data directory, the other one s3://BUCKET or s3://BUCKET/PREFIX"),
        (("s3://one", "s3://two"), "one of FROM and TO must be a data directory"),
        (("http://key:secret@tests", "DATA"), "objects: must be s3://BUCKET or s3://BUCKET/PREFIX"),
        (("missing", "URL"), "missing is no folder"),
        (("DATA", "s3://missing-bucket"), "s3://missing-bucket: cannot write to it: the bucket does not exist"),
    ],
)
def test_what_cannot_be_copied_is_told(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, str], problem: str
) -> None:
    code, said = copy(capfd, *({"DATA": tmp_path, "URL": store.url}.get(word, word) for word in words))
    assert code == 1
    assert said.startswith(f"error: {problem}")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("variables", "url", "problem"),
    [
        ({}, "s3://missing-bucket/x", "cannot write to it: the bucket does not exist"),
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "",
            "cannot write to it: the credentials are wrong (SignatureDoesNotMatch)",
        ),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, "", "cannot write to it: the credentials are wrong (InvalidAccessKeyId)"),
        ({"AWS_ACCESS_KEY_ID": KEY + "reader"}, "", "cannot write to it: the credentials have no permission"),
        ({"AWS_ACCESS_KEY_ID": KEY + "writer"}, "", "cannot read from it: the credentials have no permission"),
        ({"AWS_ACCESS_KEY_ID": KEY + "unlisting"}, "", "cannot list it: the credentials have no permission"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "",
            f"cannot write to it: {UNREACHABLE} (127.0.0.1:9: the connection is refused)",
        ),
        (
            {"AWS_ENDPOINT_URL": "https://127.0.0.1:PORT"},
            "",
            f"cannot write to it: {UNREACHABLE} (127.0.0.1:PORT: it does not speak TLS",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://no.such.host.invalid"},
            "",
            f"cannot write to it: {UNREACHABLE} (no.such.host.invalid: its name is not known)",
        ),
    ],
)
def test_a_bucket_that_cannot_be_used_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, problem: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    port = seaweed().endpoint.rpartition(":")[2]
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("PORT", port))
    with pytest.raises(BucketUnusable) as raised:
        check_bucket(BucketUrl(url or store.url)())
    assert str(raised.value).startswith(problem.replace("PORT", port))
    assert SECRET not in str(raised.value)


def test_a_server_that_cannot_use_its_bucket_does_not_start(store: Store, tmp_path: Path) -> None:
    said = refused(tmp_path / "data", "--objects", "s3://missing-bucket/x")
    line = "error: objects: s3://missing-bucket/x: cannot write to it: the bucket does not exist"
    assert said.splitlines() == [f"{line}; docs/objects.md says what is needed"]
    # It may be started with another one.
    store.bucket.put(f"{OBJECTS}00/{'0' * 64}", b"of another server")
    assert f"the database refers to no files, but {store.url} was used, and has {store.url}/objects/00/" in refused(
        tmp_path / "data", "--objects", store.url
    )
    other = Store()
    with Server(tmp_path / "data", options=("--objects", other.url), program=MODULE):
        pass
    assert f"are in {other.url}: set --objects {other.url}" in refused(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "the credentials are wrong (SignatureDoesNotMatch)"),
        ("AWS_ACCESS_KEY_ID", KEY + "reader", "the credentials have no permission (AccessDenied)"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", f"{UNREACHABLE} (127.0.0.1:9: the connection is refused)"),
    ],
)
def test_a_server_without_access_to_its_bucket_does_not_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    line = f"error: objects: {store.url}: cannot write to it: {problem}; docs/objects.md says what is needed"
    assert refused(tmp_path / "data", "--objects", store.url).splitlines() == [line]


def test_a_copy_of_nothing_fails(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for source, target in ((store.url, tmp_path), (tmp_path, store.url)):
        assert copy(capfd, source, target) == (1, f"error: {source} has no files: check its name\n")
    # No server is told to look there, or takes it for a place of files.
    assert not (tmp_path / "objects.url").exists()
    assert not store.entries("")


def test_an_endpoint_without_a_scheme_is_told_in_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed().endpoint.removeprefix("http://"))
    line = "error: objects: AWS_ENDPOINT_URL must begin with http:// or https://"
    assert refused(tmp_path / "data", "--objects", store.url).splitlines() == [line]
    assert copy(capfd, tmp_path, store.url) == (1, f"{line}\n")


def test_readable_credentials_are_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {KEY}admin\naws_secret_access_key = {SECRET}\n")
    file.chmod(0o644)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with Server(tmp_path / "data", options=("--objects", store.url), program=MODULE) as server:
        pass
    assert "others can read the object store's credentials in this file: run chmod 600" in server.log
    assert SECRET not in server.log


def test_doctor_looks_at_the_bucket(store: Store, tmp_path: Path) -> None:
    def found(url: str) -> str:
        finding = check_objects(Settings(data_dir=tmp_path, objects=url))
        return "" if finding is None else f"{finding.state}: {finding.found}"

    assert found("") == ""
    assert found(store.url) == f"ok: {store.url} can be written, read, listed and deleted from"
    assert found("s3://missing-bucket") == "fail: s3://missing-bucket: cannot write to it: the bucket does not exist"


@pytest.mark.parametrize("size", [10, LARGE["w"].size])
def test_doctor_looks_for_the_files_in_the_bucket(server: Server, store: Store, size: int) -> None:
    def found() -> str:
        shown = {one.check: one for one in check(Settings(data_dir=server.data_dir, objects=store.url))}
        return f"{shown['files'].state}: {shown['files'].found}"

    with federation(server, 0) as group:
        model = group.actor.upload_model({"w": LARGE["w"][:size]})
    assert found() == "ok: 1 checked by size"
    (entry,) = store.entries()
    store.bucket.delete(entry.key)
    missing = f"{model.sha256} (not in the object store with its size)"
    assert found() == f"fail: 1 checked by size, damaged or missing: {missing}: restore a backup"
