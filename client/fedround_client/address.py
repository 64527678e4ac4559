"""Addresses of servers: how they are written, and which proxy leads to them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

DEFAULT_PORT = 50051

# Targets in gRPC's own notation.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:")
# The environment variables that gRPC reads, in its order.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXEMPTIONS = ("no_grpc_proxy", "no_proxy")


def check_address(server: str) -> None:
    """Checks that an address is HOST:PORT, or a target in gRPC's notation.

    Raises:
        ValueError: It is not; the message says what to write.
    """
    if server.startswith(_SCHEMES):
        return
    if ";" in server:
        raise ValueError(f"The address {server!r} contains ';': addresses are separated by commas, a:50051,b:50051.")
    if "".join(server.split()) != server:
        raise ValueError(f"The address {server!r} contains white space: write HOST:PORT.")
    scheme, colon, rest = server.partition("://")
    if colon:
        raise ValueError(f"The address {server} is a URL: write {_suggest(rest)}, without {scheme}://.")
    if "/" in server:
        raise ValueError(
            f"The address {server} has a path: write {_suggest(server)}. A server has a port, and no path."
        )
    if is_ip(server) and ":" in server:
        raise ValueError(f"The address {server} has no port: write [{server}]:{DEFAULT_PORT}.")
    host, port = _split(server)
    if not port:
        raise ValueError(f"The address {server} has no port: write {_suggest(server)}, or the port of the server.")
    if ":" in host and not host.startswith("["):
        raise ValueError(f"The address {server} is ambiguous: write an IPv6 address in brackets, [{host}]:{port}.")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(
            f"The address {server} is not HOST:PORT with a port from 1 to 65535: write, for example,"
            f" {host or 'localhost'}:{DEFAULT_PORT}."
        )


def join_addresses(server: str | Sequence[str]) -> str:
    """Returns the list like a:50051,b:50051 that the argument `server` stands for: such a list, or its addresses.

    Raises:
        TypeError: It is neither; the message names the argument.
        ValueError: It has no addresses.
    """
    if isinstance(server, str):
        return server
    if not isinstance(server, Sequence) or not all(isinstance(entry, str) for entry in server):
        raise TypeError(f"server must be an address HOST:PORT, or a sequence of addresses, not {server!r}")
    if not server:
        raise ValueError("server is an empty sequence: it needs at least one address HOST:PORT")
    return ",".join(server)


def split_addresses(servers: str) -> tuple[str, ...]:
    """Returns the addresses in a list like a:50051,b:50051, each once.

    Raises:
        ValueError: An entry is not an address, or a UNIX socket is not the only one; the message names the entry.
    """
    entries = [entry.strip() for entry in servers.split(",")] if "," in servers else [servers]
    if not all(entries):
        raise ValueError(f"The list of addresses {servers!r} has an empty entry: write HOST:PORT,HOST:PORT.")
    for entry in entries:
        check_address(entry)
        if len(entries) > 1 and entry.startswith("unix"):
            raise ValueError(
                f"The address {entry} is a UNIX socket, which must be the only address: remove the others."
            )
    return tuple({entry.casefold(): entry for entry in entries}.values())


def is_loopback(server: str) -> bool:
    """Returns whether an address HOST:PORT (or unix:PATH) is on this machine; of a list, whether all are."""
    if "," in server:
        return all(is_loopback(entry.strip()) for entry in server.split(","))
    if server.startswith("unix:"):
        return True
    return is_loopback_host(server.rpartition("/")[2].rpartition(":")[0].strip("[]"))


def is_loopback_host(host: str) -> bool:
    """Returns whether only programs on this machine reach a host: localhost, or an IP address without brackets."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_and_port(server: str) -> tuple[str, int] | None:
    """Returns the host and the port of an address; None if it has none, such as unix:PATH."""
    if server.startswith(("unix", "vsock")):
        return None
    host, _, port = server.rpartition("/")[2].rpartition(":")
    host = host.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
    return (host, int(port)) if host and port.isdecimal() else None


def proxy_for(server: str) -> tuple[str, str, int] | None:
    """Returns the HTTP proxy that gRPC uses for an address: the variable that names it, its host and its port."""
    target = host_and_port(server)
    if target is None or is_loopback(server):
        return None
    variable = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
    if variable is None or _is_exempt(target[0]):
        return None
    try:
        url = urlsplit(os.environ[variable])
        # gRPC ignores proxies of other kinds.
        return (variable, url.hostname, url.port or 80) if url.scheme == "http" and url.hostname else None
    except ValueError:
        return None


def _is_exempt(host: str) -> bool:
    """Returns whether no_grpc_proxy or no_proxy excludes a host from the use of a proxy."""
    entries = next(filter(None, map(os.environ.get, _EXEMPTIONS)), "")
    for entry in filter(None, (entry.strip() for entry in entries.split(","))):
        if host.lower().endswith(entry.lower()):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def _split(authority: str) -> tuple[str, str]:
    """Returns the host and the port of HOST:PORT; the port is empty if there is none."""
    if authority.endswith("]"):
        return authority, ""
    host, colon, port = authority.rpartition(":")
    return (host, port) if colon else (authority, "")


def _suggest(text: str) -> str:
    """Returns the host and port in a URL or an address, with the default port if it has none."""
    host, port = _split(text.partition("/")[0].rpartition("@")[2])
    return f"{host or 'HOST'}:{port if port.isdecimal() else DEFAULT_PORT}"


def is_ip(text: str) -> bool:
    """Returns whether a text is an IP address, without brackets and a port."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
