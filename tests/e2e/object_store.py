"""Servers whose files are in an object store, a real one."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from contracts.buckets import real_store
from fedround_server import objects
from fedround_server.blobs.objects.bucket import Entry
from fedround_server.blobs.objects.layout import OBJECTS
from fedround_server.blobs.objects.s3 import ObstoreBucket
from seaweed import SECRET
from servers import MODULE


class Store:
    """A place in a bucket, as a server is told of it."""

    def __init__(self) -> None:
        self.prefix = str(uuid4())
        self.bucket = ObstoreBucket(real_store(self.prefix))

    @property
    def url(self) -> str:
        return f"s3://tests/{self.prefix}"

    def entries(self, prefix: str = OBJECTS) -> list[Entry]:
        return self.bucket.page(prefix, "")


def copy(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Runs `fedround objects copy`; returns the exit code and what it says."""
    code = objects.main(["copy", *map(str, words)])
    said = "".join(capfd.readouterr())
    assert SECRET not in said
    return code, said


def refused(data_dir: Path, *options: str) -> str:
    """What a server says that must not start."""
    command = [sys.executable, *MODULE, "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *options]
    command += ["--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert SECRET not in done.stderr
    return done.stderr
