"""Child processes, with small modules in place of the server and the participants."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

from fedround_client.embedded.processes import ProcessExited, ProcessGroup

WAITS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
PARENT = """
import sys, time
from pathlib import Path
from fedround_client.embedded.processes import ProcessGroup
with ProcessGroup(Path(sys.argv[1])) as processes:
    processes.start("child", "child", [], on_line=lambda line: print(line, flush=True))
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def check_until_it_fails(processes: ProcessGroup) -> None:
    while True:  # the test's timeout is the limit
        processes.check()
        time.sleep(0.01)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that the processes can run."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
    return folder


def test_no_process_is_left_at_the_end_of_the_block(tmp_path: Path, modules: Path) -> None:
    (modules / "waits.py").write_text(WAITS)
    lines: SimpleQueue[str] = SimpleQueue()
    with ProcessGroup(tmp_path) as processes:
        processes.start("one", "waits", [], on_line=lines.put)
        processes.start("two", "waits", [], on_line=lines.put)
        pids = [int(lines.get()), int(lines.get())]
        processes.check()
        assert all(map(is_running, pids))
    assert not any(map(is_running, pids))


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedround_client.embedded.processes.GRACE", 0.2)
    (modules / "stubborn.py").write_text(STUBBORN)
    lines: SimpleQueue[str] = SimpleQueue()
    with ProcessGroup(tmp_path) as processes:
        processes.start("one", "stubborn", [], on_line=lines.put)
        pid = int(lines.get())
    assert not is_running(pid)


def test_children_end_when_the_parent_is_killed(tmp_path: Path, modules: Path) -> None:
    (modules / "child.py").write_text(WAITS)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.stdout.read()  # ends when the parent and its reader thread are gone
    while is_running(pid):  # the test's timeout is the limit
        time.sleep(0.01)


def test_a_process_that_ends_is_reported_with_its_log(tmp_path: Path, modules: Path) -> None:
    (modules / "fails.py").write_text("raise SystemExit('the reason')")
    with ProcessGroup(tmp_path) as processes:
        processes.start("client 1", "fails", [], on_line=str, may_finish=True)
        with pytest.raises(ProcessExited, match=r"(?s)Client 1 ended with exit code 1\..*client-1\.log:.*the reason"):
            check_until_it_fails(processes)


def test_a_killed_process_is_reported_with_the_signal(tmp_path: Path, modules: Path) -> None:
    (modules / "waits.py").write_text(WAITS)
    lines: SimpleQueue[str] = SimpleQueue()
    with ProcessGroup(tmp_path) as processes:
        processes.start("server", "waits", [], on_line=lines.put)
        os.kill(int(lines.get()), signal.SIGKILL)
        with pytest.raises(ProcessExited, match="Server was killed by SIGKILL"):
            check_until_it_fails(processes)


def test_a_group_can_be_killed(tmp_path: Path, modules: Path) -> None:
    (modules / "stubborn.py").write_text(STUBBORN)
    lines: SimpleQueue[str] = SimpleQueue()
    with ProcessGroup(tmp_path) as processes:
        processes.start("one", "stubborn", [], on_line=lines.put)
        pid = int(lines.get())
        processes.kill()
    assert not is_running(pid)
    assert processes._processes[0].process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("may_finish", [True, False])
def test_a_process_may_finish_only_if_allowed(tmp_path: Path, modules: Path, may_finish: bool) -> None:
    (modules / "finishes.py").write_text("pass")
    with ProcessGroup(tmp_path) as processes:
        processes.start("one", "finishes", [], on_line=str, may_finish=may_finish)
        processes._processes[0].process.wait()
        if may_finish:
            processes.check()
        else:
            with pytest.raises(ProcessExited, match="ended with exit code 0"):
                processes.check()


def test_the_token_is_in_the_environment_only(tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDROUND_SERVER", "somewhere.else:1")
    (modules / "prints.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:], {name: os.environ[name] for name in os.environ if name.startswith('FEDROUND_')})"
    )
    lines: SimpleQueue[str] = SimpleQueue()
    with ProcessGroup(tmp_path) as processes:
        processes.start("one", "prints", ["--option=1"], on_line=lines.put, token="secret", may_finish=True)
        assert lines.get() == "['--option=1'] {'FEDROUND_TOKEN': 'secret'}"
