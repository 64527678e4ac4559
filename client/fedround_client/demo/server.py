"""The demo's server: a process like the one of `fedround serve`, with a folder of its own."""

import time
from pathlib import Path
from queue import Empty, SimpleQueue

from fedround_client.demo.processes import ChildEnded, Children

ARCHITECTURE, FACTORY = "digits", "fedround_client.demo.network:build"
SERVING = "fedround is serving on "
START_SECONDS = 60.0


class Server:
    """A server on a free port of this machine."""

    def __init__(self, children: Children, data_dir: Path) -> None:
        """Starts it.

        Args:
            children: Starts processes.
            data_dir: Folder for the server's files.
        """
        self._children = children
        self._data_dir = data_dir
        self._lines: SimpleQueue[str] = SimpleQueue()
        arguments = ["--listen=127.0.0.1:0", f"--data-dir={data_dir}", f"--architecture={ARCHITECTURE}={FACTORY}"]
        # In a folder without a fedround.toml: the settings of a server that somebody runs here are not for this one.
        data_dir.mkdir()
        children.start("server", "fedround_server", arguments, on_line=self._lines.put, folder=data_dir)

    def wait(self) -> str:
        """Waits until it serves.

        Returns:
            Its HOST:PORT.

        Raises:
            ChildEnded: It ended, or does not serve in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=0.1)
            except Empty:
                self._children.check()
            else:
                if line.startswith(SERVING):
                    return line.removeprefix(SERVING)
        raise ChildEnded(f"The server does not serve within {START_SECONDS:.0f} seconds; its log may say why.")

    def admin_token(self) -> str:
        """The token that it made for its admin when it started."""
        return (self._data_dir / "admin.token").read_text().strip()
