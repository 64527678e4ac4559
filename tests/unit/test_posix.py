"""Where there is no fcntl, as on Windows, the server says so; imitated by hiding the module."""

import subprocess
import sys

import pytest

CODE = """
import runpy, sys
sys.modules["fcntl"] = None
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("command", ["fedround_server", "fedround_client serve", "fedround_client demo"])
def test_the_server_says_that_it_needs_a_posix_system(command: str) -> None:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *command.split()],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "needs a POSIX system" in ended.stderr
    assert "WSL" in ended.stderr
    assert "Traceback" not in ended.stderr
