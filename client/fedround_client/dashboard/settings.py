"""What the operator of a dashboard decides."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fedround_client.address import is_loopback_host
from fedround_client.client import Client

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Settings:
    """The settings of a dashboard.

    Attributes:
        host: The address on which it listens.
        port: The port; 0 for a free one.
        hosts: Names by which browsers may call it, in lower case.
        server: The server's address, as it is shown.
        open_client: Opens a client with a token.
        idle_seconds: After how many seconds without a page a visitor is signed out.
        session_seconds: After how many seconds a visitor is signed out in any case.
        certificate: PEM files of the certificate and the key for HTTPS; None for HTTP.
    """

    host: str
    port: int
    hosts: frozenset[str]
    server: str
    open_client: Callable[[str], Client]
    idle_seconds: float = 3600.0
    session_seconds: float = 12 * 3600.0
    certificate: tuple[Path, Path] | None = None


def parse_listen(address: str) -> tuple[str, int]:
    """Returns the host and the port of an address to listen on.

    Raises:
        ValueError: It is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ValueError(f"The address {address!r} is not HOST:PORT: write, for example, 127.0.0.1:8080.")
    return host, int(port)


def allowed_hosts(host: str, names: Collection[str]) -> frozenset[str]:
    """Returns the names by which browsers may call a dashboard that listens on a host.

    Any other name in a request can be that of a page of another site, which has its name resolved to this machine (DNS
    rebinding).

    Args:
        host: The address on which it listens.
        names: Further names.

    Raises:
        ValueError: It listens on all addresses, and no name is given; or one of them has a scheme or a port.
    """
    for name in names:
        if "/" in name or name.count(":") == 1:
            raise ValueError(f"{name!r} is no name: write it without scheme and port, for example dash.example.org.")
    found = {name.lower().strip("[]") for name in names}
    if is_loopback_host(host):
        found |= LOOPBACK_NAMES | {host}
    elif host in ("0.0.0.0", "::"):  # noqa: S104 -- compared, not bound
        if not found:
            raise ValueError(f"With {host}, say which name visitors type: --allowed-host NAME.")
        found |= LOOPBACK_NAMES
    else:
        found.add(host.lower())
    return frozenset(found)
