"""Serving the dashboard over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from fedround_client.dashboard.app import Dashboard
from fedround_client.dashboard.settings import Settings

GRACE_SECONDS = 1
"""How long requests may go on after Ctrl-C; streams have no end of their own."""
MAX_CONNECTIONS = 2000


def make_server(dashboard: Dashboard, settings: Settings, ready: Callable[[], None]) -> uvicorn.Server:
    """Returns the HTTP server of a dashboard; `run(sockets=[...])` serves until it is interrupted.

    Args:
        dashboard: The dashboard.
        settings: Its settings.
        ready: Called once requests are accepted.
    """
    certificate, key = settings.certificate or (None, None)
    config = uvicorn.Config(
        dashboard.app,
        # Neither URLs nor headers are logged: the link of the operator is a URL.
        access_log=False,
        log_config=None,
        server_header=False,
        # Addresses of visitors are those of their connections, whatever headers say.
        proxy_headers=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return _Server(config, ready)


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def bind(settings: Settings) -> socket.socket:
    """Returns a socket that is bound to the address of a dashboard.

    Raises:
        OSError: The address is not of this machine, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family)
