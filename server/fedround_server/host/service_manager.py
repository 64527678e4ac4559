"""Tells the service manager that the server is ready or stops, as sd_notify(3) of systemd does."""

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Sends a state such as "READY=1" to the socket in NOTIFY_SOCKET; nothing happens without a listener."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # "@" stands for the zero byte of an abstract socket.
        channel.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
