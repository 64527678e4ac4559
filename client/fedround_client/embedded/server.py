"""A server in a child process: like that of `fedround serve`, on a free port of this machine."""

import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from fedround_client.embedded.processes import ProcessExited, ProcessGroup

SERVING = "fedround is serving on "
START_SECONDS = 60.0


class Server:
    """A server on a free port of this machine."""

    def __init__(self, processes: ProcessGroup, data_dir: Path, options: Sequence[str] = ()) -> None:
        """Starts the server.

        Args:
            processes: Starts processes.
            data_dir: Data directory; created if it does not exist.
            options: Further options of `fedround serve`.
        """
        self._processes = processes
        self._data_dir = data_dir
        self._lines: SimpleQueue[str] = SimpleQueue()
        arguments = ["--listen=127.0.0.1:0", f"--data-dir={data_dir.absolute()}", *options]
        data_dir.mkdir(parents=True, exist_ok=True)
        # Runs in its data directory, so that it does not read a fedround.toml of another server.
        processes.start("server", "fedround_server", arguments, on_line=self._lines.put, folder=data_dir)

    def wait(self) -> str:
        """Waits until the server is ready.

        Returns:
            Its HOST:PORT.

        Raises:
            ProcessExited: It ended, or is not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=0.1)
            except Empty:
                self._processes.check()
            else:
                if line.startswith(SERVING):
                    return line.removeprefix(SERVING)
        raise ProcessExited(f"The server is not ready after {START_SECONDS:.0f} seconds; its log may say why.")

    def admin_token(self) -> str:
        """Returns the token of the admin, which the first start created."""
        return (self._data_dir / "admin.token").read_text().strip()
