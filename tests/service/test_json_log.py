"""Each line of the JSON log is JSON, whoever writes it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from calls import until
from servers import MODULE, Server

FORMAT = ("--log-format", "json")
# A server that lets everything write to stderr that can, as soon as it serves.
PROGRAM = """
import asyncio, ctypes, gc, logging, multiprocessing, os, subprocess, sys, threading, warnings
from fedround_server import __main__
from fedround_server.host import allocator

def fail(where):
    raise ZeroDivisionError("in " + where)

class Finalized:
    def __del__(self):
        fail("a finalizer")

async def fail_unseen():
    fail("a task that nobody awaits")

def write():
    ctypes.CDLL(None).perror(b"from C")
    warnings.warn("from a warning", DeprecationWarning)
    logging.getLogger("a.library").error("from a library")
    print("from print", file=sys.stderr)
    os.write(2, b"\\xff from bytes \\x1b[31m \\"quoted\\"\\n")
    subprocess.run(["sh", "-c", "echo from another process >&2"])
    threading.Thread(target=fail, args=["a thread"]).start()
    Finalized()
    asyncio.get_running_loop().call_later(1, gc.collect)
    task = asyncio.ensure_future(fail_unseen())
    del task
    [worker] = multiprocessing.active_children()
    worker.kill()

allocator.set_up = write
sys.exit(__main__.main())
"""
WRITERS = ("C", "a warning", "a library", "print", "bytes", "another process")
FAILING = ("a thread", "a finalizer", "a task that nobody awaits")


def entries(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= entry.keys() for entry in found)
    return found


def test_a_server_in_which_everything_writes(tmp_path: Path) -> None:
    words = [*(f"from {writer}" for writer in WRITERS), *(f"in {writer}" for writer in FAILING)]
    with Server(tmp_path / "data", options=FORMAT, program=("-W", "default", "-c", PROGRAM)) as server:
        until(lambda: all(word in server.log for word in words))
        assert server.stop() == 0
        found = entries(server.log)
        server.start()
    for writer in FAILING:
        # One entry for each exception, with its traceback.
        (entry,) = [one for one in found if f"in {writer}" in json.dumps(one)]
        assert entry["level"] == "error"
        assert entry["exception"][0]["exc_type"] == "ZeroDivisionError"
        assert entry["exception"][0]["frames"]


def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        command = [sys.executable, *MODULE, "--listen", server.address, "--data-dir", str(tmp_path / "other"), *FORMAT]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    found = entries(ended.stderr)
    assert [entry["level"] for entry in found if "another server" in entry["event"]] == ["error"]
    # gRPC's C code says more about it.
    assert [entry["logger"] for entry in found if "bind" in entry["event"].lower()][:1] == ["stderr"]
