"""`--processes N`: several servers on one port and one data directory."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import fedround_client as fr
import forked
from calls import new_id, until
from e2e.federation import federation, plus_one
from fedround.v1 import training_pb2, training_pb2_grpc
from fedround_client import channel
from fedround_server.host.file_lock import locked_folder
from servers import MODULE, Server, descendants

# Otherwise all channels of this process share one connection.
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
on_postgres = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def server(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(channel, "OPTIONS", (*channel.OPTIONS, OWN_CONNECTION))
    options = ("--processes", "2", "--replica-name", "one", "--log-format", "json")
    with Server(tmp_path / "data", database=database, options=options, program=MODULE) as running:
        yield running


def processes(server: Server) -> list[int]:
    """The servers below the supervisor: those that it has started itself."""
    return [pid for pid in descendants(server.pid) if parent(pid) == server.pid]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def who_answers(server: Server) -> str:
    """The name of the process that gets a new connection; empty if none of them answers."""
    with grpc.insecure_channel(server.address, options=[OWN_CONNECTION]) as one:
        request = training_pb2.GetTrainingRequest(training_id=new_id())
        try:
            training_pb2_grpc.TrainingServiceStub(one).GetTraining(
                request, metadata=[("authorization", f"Bearer {server.admin_token}")]
            )
        except grpc.RpcError as error:
            return dict(error.trailing_metadata() or ()).get("fedround-replica", "")
    raise AssertionError("there is such a training")


def reach_both(server: Server) -> None:
    found: set[str] = set()

    def is_reached() -> bool:
        found.add(who_answers(server))
        return found >= {"one.0", "one.1"}

    until(is_reached)


@on_postgres
def test_processes_share_a_port_and_one_that_is_killed_is_started_again(server: Server) -> None:
    reach_both(server)
    for victim in processes(server):
        # Others each time: of the users of a killed process, the other one knows only later that they have left.
        with federation(server, 4) as group:
            made = group.run(lambda _: (plus_one,), {"w": np.zeros(5, np.float32)}, target_num_updates=3)
            os.kill(victim, signal.SIGKILL)
            assert group.actor.download_model(made.model_id)["w"].tolist() == [3] * 5
        reach_both(server)
    assert server.log.count("a process has ended, and is started again") == 2
    assert '"replica":"one.1"' in server.log.replace(": ", ":")
    assert "Traceback" not in server.log
    children = processes(server)
    assert len(children) == 2
    assert server.stop() == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not [*server.data_dir.glob("journal/*"), *server.data_dir.glob("process-1/journal/*")]
    server.start()


@on_postgres
def test_processes_end_with_their_supervisor_and_keep_the_directory_until_then(server: Server) -> None:
    children = processes(server)
    os.kill(children[1], signal.SIGSTOP)
    server.kill()
    until(lambda: not Path(f"/proc/{children[0]}").exists())
    with pytest.raises(RuntimeError, match="another server uses the data directory"), locked_folder(server.data_dir):
        pass
    os.kill(children[1], signal.SIGCONT)
    until(lambda: not Path(f"/proc/{children[1]}").exists())
    server.start()
    with fr.connect(server.address, server.admin_token) as admin:
        assert admin.myself().role


@on_postgres
def test_a_start_fails_if_one_of_the_processes_cannot_start(tmp_path: Path, database: str) -> None:
    data_dir = tmp_path / "data"
    own = data_dir / "process-1"
    own.mkdir(parents=True, mode=0o700)
    running = Server(data_dir, database=database, options=("--processes", "2"), program=MODULE)
    with locked_folder(own), pytest.raises(AssertionError, match=f"another server uses the data directory {own}"):
        running.__enter__()
    with running:
        pass


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "processes: several need PostgreSQL: set database, or leave processes out"),
        (
            ("--database", "postgresql://x/y", "--id-seed", "7"),
            "processes: several would make the same ids of id_seed: leave one of both out",
        ),
        (
            ("--database", "postgresql://x/y", "--replica-name", "n" * 61),
            "replica_name must have at most 60 characters with several processes",
        ),
        (
            ("--database", "postgresql://x/y", "--metrics-listen", "127.0.0.1:65535"),
            "metrics_listen: there must be a port for each process behind this one",
        ),
    ],
)
def test_what_several_processes_cannot_have_is_told(tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    ended = forked.run("--data-dir", tmp_path / "data", "--processes", "2", *options)
    assert (ended.returncode, ended.stderr) == (2, f"error: {problem}\n")


def test_the_journal_of_a_process_that_is_not_started_is_not_forgotten(tmp_path: Path) -> None:
    journal = tmp_path / "data" / "process-2" / "journal"
    journal.mkdir(parents=True)
    (journal / "0").touch()
    ended = forked.run("--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: processes: {journal} has files that may not be on disk elsewhere: start the server with at least"
        " --processes 3 once, and stop it with SIGTERM\n"
    )
