"""A server for experiments: on a free port of this machine, with a temporary data directory."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fedround_client as fr

SERVING = "fedround is serving on "


@contextmanager
def local_server(*options: str) -> Iterator[tuple[str, str]]:
    """Runs a server during the block.

    Args:
        options: Further options of `fedround serve`.

    Yields:
        Its HOST:PORT, and the admin's token.
    """
    with tempfile.TemporaryDirectory(prefix="fedround-") as folder:
        command = [sys.executable, "-m", "fedround_server", "--listen=127.0.0.1:0", f"--data-dir={folder}", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                if not line.startswith(SERVING):
                    raise RuntimeError("the server does not start: run `fedround serve` to see why")
                yield line.removeprefix(SERVING).strip(), (Path(folder) / "admin.token").read_text()
            finally:
                process.terminate()


def create_users(address: str, admin_token: str, num_clients: int) -> tuple[str, list[str], list[str]]:
    """Creates an actor and clients.

    Returns:
        The actor's token, the clients' ids, and their tokens.
    """
    with fr.connect(address, admin_token) as admin:
        _, actor_token = admin.create_user("actor", role="ACTOR")
        clients = [admin.create_user(f"client {number}") for number in range(num_clients)]
    return actor_token, [user.user_id for user, _ in clients], [token for _, token in clients]
