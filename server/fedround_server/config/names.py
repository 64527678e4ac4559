"""How a server is called among others."""

import os
import re
import socket

from fedround_server.config.settings import Settings


def replica_name(settings: Settings, port: int) -> str:
    """Returns the name of a server in errors and among replicas: of its settings, or its host and port."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    return settings.replica_name or f"{host[:50] or 'fedround'}:{port or os.getpid()}"
