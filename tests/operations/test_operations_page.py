"""The commands for TLS in docs/operations.md do what the page says, as they stand there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ports import hold_a_port

PAGE = Path(__file__).parents[2] / "docs/operations.md"
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")


class Machine:
    """A folder in which the blocks run, with `fedround` on the path and another port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = port
        program = folder / "bin/fedround"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable} -P\nfrom fedround_client.command import main\nmain()\n")
        program.chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
        self._environment = {
            **inherited,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def start(self, name: str, log: Path) -> "subprocess.Popen[str]":
        """Starts a block, which logs to a file."""
        with log.open("a") as stderr:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"exec {self._block(name).strip()}"],
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def run(self, name: str) -> str:
        """Runs a block; returns what it prints."""
        command = ["bash", "-euo", "pipefail", "-c", self._block(name)]
        ended = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def _block(self, name: str) -> str:
        text = BLOCKS[name].replace("0.0.0.0:50051", f"127.0.0.1:{self._port}")
        return text.replace("fedround.example.org:50051", f"localhost:{self._port}").replace(":50051", f":{self._port}")


@contextmanager
def serving(machine: Machine, log: Path) -> Iterator[None]:
    """Runs the block that serves."""
    server = machine.start("serve", log)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("fedround is serving on "), log.read_text()
        yield
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def test_the_commands_for_tls_work_as_they_stand_there(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with hold_a_port() as port:
        machine = Machine(tmp_path, port.getsockname()[1])
        for name in ("authority", "server", "client"):
            machine.run(name)
        assert {path.stat().st_mode & 0o77 for path in (tmp_path / "tls").glob("*.key")} == {0}
        with serving(machine, log):
            printed = machine.run("admin")
            assert "SERVING" in printed
            assert "ward-7.example.org" in printed
            machine.run("renew")
            assert "ward-7" in machine.run("ward")
            assert "loaded new TLS files" in log.read_text()
            assert "the TLS certificate" not in log.read_text()


def test_every_block_that_is_marked_is_run() -> None:
    assert set(BLOCKS) == {"authority", "server", "client", "serve", "admin", "renew", "ward"}
    assert PAGE.read_text(encoding="utf-8").count("<!-- run:") == len(BLOCKS)
