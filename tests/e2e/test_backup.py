"""What a backup consists of, what becomes of it when it is made again, and what is noticed about damage."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import fedround_client as fr
from calls import model_file
from damage import flip
from e2e.data_dirs import DataDirectory, fill_data_dir
from fedround_server.backup.__main__ import main
from fedround_server.backup.layout import Backup, BackupError
from fedround_server.backup.restore import restore, verify
from fedround_server.backup.take import Taken, take
from fedround_server.domain.event import history_of
from postgres import create_database, program
from servers import Server

NOW = datetime.now(UTC)


async def prepare(directory: DataDirectory) -> str:
    """A training in its first round, with one of two updates."""
    _, (first, _), training = await directory.running(2)
    await directory.submit(training, 0, first, model_file(1))
    directory.keep(b"of an upload that no row refers to")
    return training.training_id


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    fill_data_dir(tmp_path / "data", "", NOW, prepare)
    return tmp_path / "data"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def backed_up(data_dir: Path, output: Path, *, link: bool = False, keep: int = 1, files_only: bool = False) -> Taken:
    database = data_dir / "fedround.db"
    return take(data_dir, database, output, link=link, keep=keep, files_only=files_only, pg_dump="pg_dump")


def restored(output: Path, target: Path, snapshot: str = "") -> Path:
    restore(output, target, snapshot=snapshot, database="", pg_restore="pg_restore")
    return target


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("objects/*/*"))


def test_a_backup_has_what_the_database_refers_to_and_only_its_owner_may_read_it(data_dir: Path, output: Path) -> None:
    taken = backed_up(data_dir, output)
    assert taken.manifest is not None
    assert (taken.num_copied, len(blobs(data_dir)), taken.manifest.num_files) == (2, 3, 2)
    assert (taken.manifest.trainings, taken.manifest.num_models, taken.manifest.num_users) == ({"ONGOING": 1}, 1, 3)
    found = modes(output)
    assert {mode for path, mode in found.items() if path.startswith("objects") and len(path) > 60} == {0o400}
    assert {mode for path, mode in found.items() if (output / path).is_dir()} == {0o700}
    assert {mode for path, mode in found.items() if (output / path).parent.parent.name == "snapshots"} == {0o600}
    sums = output / "snapshots" / taken.snapshot / "SHA256SUMS"
    assert subprocess.run(["sha256sum", "--check", "--quiet", str(sums)], cwd=output, check=False).returncode == 0


def test_a_second_backup_copies_what_is_new_and_keeps_as_many_as_it_shall(data_dir: Path, output: Path) -> None:
    first = backed_up(data_dir, output, keep=2)
    second = backed_up(data_dir, output, keep=2)
    assert (first.num_copied, second.num_copied) == (2, 0)
    assert Backup(output).names() == [first.snapshot, second.snapshot]
    third = backed_up(data_dir, output, keep=1)
    assert Backup(output).names() == [third.snapshot]
    # What no snapshot has any more is removed.
    stray = output / "objects/00" / ("0" * 64)
    stray.parent.mkdir()
    stray.write_bytes(b"")
    backed_up(data_dir, output)
    assert not stray.exists()
    assert len(blobs(output)) == 2


def test_a_backup_that_was_interrupted_leaves_the_one_before(data_dir: Path, output: Path, tmp_path: Path) -> None:
    first = backed_up(data_dir, output)
    # What a killed backup leaves.
    (output / "snapshots/.new").mkdir()
    (output / "snapshots/.new/fedround.db").write_bytes(b"half")
    shutil.copytree(output / "snapshots" / first.snapshot, output / "snapshots/.old")
    blobs(output)[0].with_name(".part").write_bytes(b"half")
    assert verify(output).snapshots == [first.snapshot]
    restored(output, tmp_path / "restored")
    second = backed_up(data_dir, output)
    assert [path.name for path in (output / "snapshots").iterdir()] == [second.snapshot]
    assert not [path for path in blobs(output) if path.name.startswith(".")]


def test_files_are_on_disk_before_they_are_linked(
    data_dir: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), synced.append(os.fstat(file).st_ino)))
    backed_up(data_dir, output, link=True)
    assert {path.stat().st_ino for path in blobs(output)} <= set(synced)


def test_links_share_the_files(data_dir: Path, output: Path, tmp_path: Path) -> None:
    assert backed_up(data_dir, output, link=True).num_copied == 2
    assert {path.stat().st_nlink for path in blobs(output)} == {2}
    # Not with what was restored from them.
    assert {path.stat().st_nlink for path in blobs(restored(output, tmp_path / "restored"))} == {1}


def test_damaged_files_of_the_server_are_named_and_left_out(data_dir: Path, output: Path, tmp_path: Path) -> None:
    backed_up(data_dir, output)
    good = {path.name for path in blobs(output)}
    bad, gone = sorted(good)
    flip(data_dir / "objects" / bad[:2] / bad, 5)
    (data_dir / "objects" / gone[:2] / gone).unlink()
    # An earlier backup has them.
    assert backed_up(data_dir, output).damaged == []
    assert sorted(backed_up(data_dir, tmp_path / "other").damaged) == [bad, gone]
    problems = verify(tmp_path / "other").problems
    assert [digest in problem for digest, problem in zip((bad, gone), problems, strict=True)] == [True, True]


@pytest.mark.parametrize("file", ["objects/*/*", "snapshots/*/fedround.db", "snapshots/*/SHA256SUMS"])
def test_a_damaged_backup_is_noticed_and_not_restored(data_dir: Path, output: Path, tmp_path: Path, file: str) -> None:
    backed_up(data_dir, output)
    (path, *_) = sorted(output.glob(file))
    flip(path, 70)
    (problem,) = [one for one in verify(output).problems if str(path) in one]
    assert "is damaged" in problem
    with pytest.raises(BackupError, match="is damaged"):
        restored(output, tmp_path / "restored")
    # No server starts on what is there.
    assert not (tmp_path / "restored/fedround.db").exists()


def test_a_backup_is_restored_into_an_empty_folder_only(data_dir: Path, output: Path, tmp_path: Path) -> None:
    backed_up(data_dir, output)
    with pytest.raises(BackupError, match="is not empty: choose another folder"):
        restored(output, data_dir)
    (tmp_path / "empty").mkdir(mode=0o755)
    restored(output, tmp_path / "empty")
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700
    assert modes(tmp_path / "empty")["fedround.db"] == 0o600
    with pytest.raises(BackupError, match="has no snapshot yesterday: it has 2"):
        restored(output, tmp_path / "other", "yesterday")
    with pytest.raises(BackupError, match="is no backup"):
        restored(tmp_path / "nothing", tmp_path / "other")
    with pytest.raises(BackupError, match="inside of the data directory"):
        backed_up(data_dir, data_dir / "backup")


def test_postgresql_is_dumped_and_restored_with_its_files(postgres: str, tmp_path: Path, output: Path) -> None:
    pg_dump, pg_restore = program("pg_dump"), program("pg_restore")
    url, data_dir = create_database(postgres), tmp_path / "data"
    training_id = fill_data_dir(data_dir, url, NOW, prepare)
    taken = take(data_dir, url, output, link=False, keep=1, files_only=False, pg_dump=pg_dump)
    assert taken.manifest is not None
    assert (taken.num_copied, taken.manifest.database) == (2, "postgresql")
    assert verify(output).problems == []
    target = create_database(postgres)
    with pytest.raises(BackupError, match="name an empty database"):
        restored(output, tmp_path / "without")
    with pytest.raises(BackupError, match="the database is not empty"):
        restore(output, tmp_path / "same", snapshot="", database=url, pg_restore=pg_restore)
    restore(output, tmp_path / "restored", snapshot="", database=target, pg_restore=pg_restore)
    # No admin had a token, so that there is a new one.
    with (
        Server(tmp_path / "restored", database=target) as server,
        fr.connect(server.address, server.admin_token) as admin,
    ):
        opened = [entry.training_id for entry in admin.read_audit() if entry.action == "round_opened"]
        assert opened == [training_id]
        assert admin.verify_audit().chains == 1


def test_files_are_copied_around_a_backup_of_the_database_by_other_means(
    postgres: str, tmp_path: Path, output: Path
) -> None:
    url, data_dir = create_database(postgres), tmp_path / "data"
    fill_data_dir(data_dir, url, NOW, prepare)
    first = backed_up(data_dir, output, files_only=True)
    copy = create_database(postgres, url)
    second = backed_up(data_dir, output, files_only=True)
    assert (first.num_copied, second.num_copied, first.manifest) == (3, 0, None)
    assert verify(output).num_files == 3
    restore(output, tmp_path / "restored", snapshot="", database=copy, pg_restore="pg_restore")
    with Server(tmp_path / "restored", database=copy) as server:
        assert "recovering" not in server.log
    assert urlsplit(copy).path != urlsplit(url).path


def test_a_program_that_is_missing_is_named(postgres: str, tmp_path: Path, output: Path) -> None:
    url, data_dir = create_database(postgres), tmp_path / "data"
    fill_data_dir(data_dir, url, NOW, prepare)
    with pytest.raises(
        BackupError, match=r"absent is not installed here: install .* or name the program with --pg-dump"
    ):
        take(data_dir, url, output, link=False, keep=1, files_only=False, pg_dump="absent")


def test_the_commands_say_what_they_have_done(
    data_dir: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        return code, *capsys.readouterr()

    code, out, _ = run("backup", "--data-dir", str(data_dir), "--output", str(output), "--format", "json")
    assert (code, json.loads(out)["manifest"]["trainings"]) == (0, {"ONGOING": 1})
    assert run("backup", "verify", str(output)) == (0, "Read 3 files of 1 snapshot: 0 problems.\n", "")
    target = str(tmp_path / "restored")
    code, out, _ = run("restore", str(output), "--data-dir", target)
    assert code == 0
    assert out.startswith("Restored the snapshot of 20")
    assert f" to {target}.\nTrainings: 1 ONGOING. Models: 1. Users: 3.\nFiles: 2, of " in out
    assert "\nNext:\n  - start the server: fedround serve" in out
    code, _, error = run("restore", str(output), "--data-dir", target, "--format", "json")
    assert (code, json.loads(error)["reason"]) == (1, "BACKUP")
    nowhere = str(tmp_path / "nowhere")
    told = f"error: {nowhere} is no data directory of a server: it has no objects/\n"
    assert run("backup", "--data-dir", nowhere, "--output", str(output)) == (1, "", told)
    flip(blobs(output)[0], 1)
    code, out, error = run("backup", "verify", str(output))
    assert (code, out) == (1, "Read 3 files of 1 snapshot: 1 problem.\n")
    assert error.startswith(f"error: {blobs(output)[0]} is damaged: its SHA-256 is ")


def test_the_command_passes_its_options_on(data_dir: Path, output: Path) -> None:
    words = ("backup", "--data-dir", str(data_dir), "--output", str(output), "--link")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
    call = [sys.executable, "-m", "fedround_client", *words]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert f" in {output}.\n" in done.stdout
    assert "\nFiles: 2, of " in done.stdout
    assert "\nNew files: 2, of " in done.stdout


def test_logs_of_open_trainings_begin_a_new_history(data_dir: Path, output: Path, tmp_path: Path) -> None:
    backed_up(data_dir, output)
    for number, folder in enumerate((data_dir, restored(output, tmp_path / "restored"))):
        with sqlite3.connect(folder / "fedround.db") as database:
            ((last,),) = database.execute("SELECT last_sequence FROM training").fetchall()
        assert history_of(last) == number
