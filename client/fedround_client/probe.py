"""Finds out why no connection to a server is possible: gRPC's own messages say little about proxies and TLS."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import closing, suppress

import grpc

from fedround_client.address import host_and_port, proxy_for
from fedround_client.channel import Target
from fedround_client.errors import (
    FedroundError,
    NoGrpcServer,
    ProxyDenied,
    ProxyUnreachable,
    ServerUnavailable,
    TlsFailed,
    from_rpc_error,
)
from fedround_client.errors.http_answer import from_page

PROBE_SECONDS = 5.0
"""How long one step of a probe may take."""
CLOSED_ATTEMPTS = 3
"""Connections that a server must close without an alert: gRPC does so if a client certificate is missing."""

_PROXY_ANSWER_BYTES = 8192
# How gRPC words that it has no connection, as opposed to one that was lost during a call.
_NOT_CONNECTED = re.compile("failed to connect|resol", re.IGNORECASE)

# The X509_V_ERR codes of OpenSSL; all others mean that no trusted authority signed the certificate.
_EXPIRED, _NOT_YET_VALID = {10}, {9}
_WRONG_NAME = {62, 64}
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
}


def connection_error(error: grpc.RpcError, target: Target | None, address: str, *, is_first: bool) -> FedroundError:
    """Returns the exception for a failed call, with what can be found out about the way to the server.

    Args:
        error: The error that grpc raised.
        target: What the channel leads to; None if that is not known.
        address: The server's address, for messages.
        is_first: Whether the server has not answered with gRPC before.
    """
    failure = from_rpc_error(error, address)
    if target is not None and is_not_connected(error):
        return explain(target, failure)
    page = from_page(error.code(), error.details() or "", address) if is_first else None
    return page or failure


def is_not_connected(error: grpc.RpcError) -> bool:
    """Returns whether a call failed since there was no connection to the server."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and bool(_NOT_CONNECTED.search(error.details() or ""))


class _ClosedError(Exception):
    """The server closed a connection without an alert when the handshake was complete."""


def explain(target: Target, error: FedroundError) -> FedroundError:
    """Returns the reason why a connection failed, if a short connection of its own finds it; else the error itself.

    Args:
        target: The server.
        error: The exception of a call that failed before the server answered.
    """
    place = host_and_port(target.server)
    if place is None:
        return error
    try:
        for _ in range(CLOSED_ATTEMPTS):
            with suppress(_ClosedError), closing(_connect(target, *place)) as connection:
                connection.settimeout(PROBE_SECONDS)
                found = _find_tls(connection, target) if target.plaintext else _check_tls(connection, target, place[0])
                return found or error
    except FedroundError as failure:
        return failure
    except OSError:
        return error
    return _certificate_rejected(target, "it closed each connection after the handshake")


def _connect(target: Target, host: str, port: int) -> socket.socket:
    """Connects to the server, through the proxy that gRPC uses.

    Raises:
        ProxyUnreachable, ProxyDenied, ServerUnavailable: The proxy does not lead to the server.
        OSError: The server cannot be reached.
    """
    proxy = proxy_for(target.server)
    if proxy is None:
        return socket.create_connection((host, port), PROBE_SECONDS)
    variable, proxy_host, proxy_port = proxy
    name = f"The HTTP proxy {proxy_host}:{proxy_port}, which the environment variable {variable} names,"
    remedy = f"Correct {variable}, or add {host} to no_proxy if the server can be reached without the proxy."
    try:
        connection = socket.create_connection((proxy_host, proxy_port), PROBE_SECONDS)
    except OSError as error:
        message = f"{name} cannot be reached ({error.strerror or error}). {remedy}"
        raise ProxyUnreachable(grpc.StatusCode.UNAVAILABLE, "PROXY_UNREACHABLE", message) from error
    try:
        status = _open_tunnel(connection, f"{host}:{port}")
    except OSError as error:
        connection.close()
        message = f"{name} does not answer as an HTTP proxy ({error.strerror or error}). {remedy}"
        raise ProxyUnreachable(grpc.StatusCode.UNAVAILABLE, "PROXY_UNREACHABLE", message) from error
    if 200 <= status < 300:
        return connection
    connection.close()
    if status >= 500:
        message = f"{name} cannot reach {target.server} (HTTP {status}). Is `fedround serve` running there? {remedy}"
        raise ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", message)
    message = f"{name} does not allow a connection to {target.server} (HTTP {status}). {remedy}"
    raise ProxyDenied(grpc.StatusCode.PERMISSION_DENIED, "PROXY_DENIED", message)


def _open_tunnel(connection: socket.socket, authority: str) -> int:
    """Asks a proxy for a tunnel; returns the HTTP status of its answer.

    Raises:
        OSError: It gives none.
    """
    connection.settimeout(PROBE_SECONDS)
    connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _PROXY_ANSWER_BYTES:
        data = connection.recv(_PROXY_ANSWER_BYTES)
        if not data:
            break
        answer += data
    version, _, rest = answer.partition(b" ")
    if not version.startswith(b"HTTP/") or not rest[:3].isdigit():
        raise OSError("its answer is not HTTP")
    return int(rest[:3])


def _find_tls(connection: socket.socket, target: Target) -> FedroundError | None:
    """Returns the exception for a server that expects TLS from a client that uses plaintext."""
    try:
        _unverified().wrap_socket(connection, server_hostname=None).close()
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return None
    why = "--insecure, or insecure=True" if target.insecure else "the default for addresses on this machine"
    return _tls_failed(
        "TLS_REQUIRED",
        f"The server at {target.server} requires TLS, and this client uses plaintext ({why}): use TLS, and give the"
        " file of the authority that signed the server's certificate (tls_ca, --tls-ca or FEDROUND_TLS_CA).",
    )


class _Encrypted(ssl.SSLSocket):
    """Closes itself if the server has reset the connection before the handshake, which Python 3.11 does not."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receives bytes, also those that `wrap_socket` looks for on a connection that was reset."""
        try:
            return super().recv(buflen, flags)
        except OSError:
            self.close()
            raise


def _unverified() -> ssl.SSLContext:
    """Returns a context for a connection over which nothing is sent: it only finds out whether the server uses TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Encrypted
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _check_tls(connection: socket.socket, target: Target, host: str) -> FedroundError | None:
    """Returns the exception for a server with which no verified connection is possible."""
    bad_file: FedroundError | None = None
    try:
        context = ssl.create_default_context(cafile=target.tls_ca)
        context.sslsocket_class = _Encrypted
        if target.tls_cert is not None:
            context.load_cert_chain(target.tls_cert, target.tls_key, password="")
    except OSError as error:
        bad_file = _tls_failed("TLS_FILE_INVALID", f"A TLS file cannot be used: {_reason(error)}. {_files(target)}")
        context = _unverified()
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as encrypted:
            if bad_file is not None:
                return bad_file
            if encrypted.selected_alpn_protocol() != "h2":
                return NoGrpcServer(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "NO_GRPC_SERVER",
                    f"No gRPC server answers at {target.server}: what answers there uses TLS, but not HTTP/2. Check"
                    " host and port; a proxy in between must forward HTTP/2 to the server.",
                )
            # In TLS 1.3 the server checks the client's certificate after the client's handshake is complete. Nothing is
            # sent: to a server that has hung up, that would discard its alert.
            if not encrypted.recv(1):
                raise _ClosedError
    except ssl.SSLCertVerificationError as error:
        return _not_verified(error, target, host)
    except ssl.SSLError as error:
        return _handshake_failed(error, target) or bad_file
    return None


def _not_verified(error: ssl.SSLCertVerificationError, target: Target, host: str) -> FedroundError:
    certificate = f"The certificate of the server at {target.server}"
    if error.verify_code in _EXPIRED:
        return _tls_failed(
            "TLS_EXPIRED",
            f"{certificate} has expired: the operator must renew it. If it is new, check this machine's clock.",
        )
    if error.verify_code in _NOT_YET_VALID:
        return _tls_failed("TLS_NOT_YET_VALID", f"{certificate} is not valid yet: check this machine's clock.")
    if error.verify_code in _WRONG_NAME:
        return _tls_failed(
            "TLS_WRONG_NAME",
            f"{certificate} is for other names than {host} ({error.verify_message}): connect with a name that it has,"
            f" or the operator adds {host} to the certificate.",
        )
    if error.verify_code in _UNKNOWN_AUTHORITY:
        given = "this machine trusts" if target.tls_ca is None else f"{target.tls_ca} contains"
        return _tls_failed(
            "TLS_UNKNOWN_AUTHORITY",
            f"{certificate} is signed by an authority that is not among those that {given} ({error.verify_message}):"
            " ask the operator for the file of the right one, and give it as tls_ca, --tls-ca or FEDROUND_TLS_CA.",
        )
    return _tls_failed(
        "TLS_CERTIFICATE_INVALID",
        f"{certificate} is not valid ({error.verify_message}): the operator must replace it.",
    )


def _handshake_failed(error: ssl.SSLError, target: Target) -> FedroundError | None:
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return _tls_failed(
            "TLS_NOT_OFFERED",
            f"The server at {target.server} does not use TLS, and this client requires it, so nothing was sent: check"
            " the port; the operator gives the server --tls-cert and --tls-key.",
        )
    if "ALERT" not in reason:
        return None
    return _certificate_rejected(target, reason)


def _certificate_rejected(target: Target, reason: str) -> FedroundError:
    if target.tls_cert is None:
        return _tls_failed(
            "TLS_CLIENT_CERTIFICATE",
            f"The server at {target.server} ended the TLS handshake ({reason}): it requires a client certificate. Give"
            " yours as tls_cert and tls_key, or --tls-cert and --tls-key.",
        )
    return _tls_failed(
        "TLS_CLIENT_CERTIFICATE",
        f"The server at {target.server} does not accept the client certificate {target.tls_cert} ({reason}): check that"
        " it has not expired, and that the operator's client authority signed it.",
    )


def _files(target: Target) -> str:
    files = {"tls_ca": target.tls_ca, "tls_cert": target.tls_cert, "tls_key": target.tls_key}
    given = ", ".join(f"{name} is {path}" for name, path in files.items() if path is not None)
    return f"Each must be in PEM format, and the key must not be encrypted: {given}." if given else ""


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)


def _tls_failed(reason: str, message: str) -> TlsFailed:
    return TlsFailed(grpc.StatusCode.FAILED_PRECONDITION, reason, message)
