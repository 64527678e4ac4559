"""TLS credentials from files that may be replaced while the server runs."""

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import structlog

from fedround_server.host.certificate import first_certificate, not_after

WARNING = timedelta(days=14)
"""How long before its end a certificate is warned about."""
WARN_EVERY = 86_400.0
"""Seconds between two such warnings."""

log = structlog.get_logger("fedround.tls")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of certificate, key and CA of client certificates; without a CA, no client needs a certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def signature(self) -> tuple[tuple[int, ...] | None, ...]:
        """Returns a value that changes when a file is replaced, without reading the files."""
        return tuple(map(_signature, (self.cert, self.key, self.client_ca)))

    def expiry(self) -> datetime:
        """Returns when the server's certificate expires, the first of the chain.

        Raises:
            OSError, ValueError: The file cannot be read, or has no certificate.
        """
        return not_after(first_certificate(self.cert.read_text(errors="replace")))

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Reads the files.

        Raises:
            OSError: One cannot be read, is not a PEM file of its kind, or the key does not fit the certificate.
        """
        # Checked here: gRPC would accept bad files, and then fail at every connection.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key, password="")
        if self.client_ca is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self.client_ca)
        client_ca = None if self.client_ca is None else self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca)


class _Reloading:
    """Checks the files at each new connection, and loads all of them or none."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.signature()
        self.first = files.load()
        self._expiry = files.expiry()
        self._next_warning = 0.0
        self._warn()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the configuration of the files; None if they have not changed, or cannot be used."""
        found = self._files.signature()
        if found == self._seen:
            self._warn()
            return None
        cert, key = str(self._files.cert), str(self._files.key)
        try:
            loaded, expiry = self._files.load(), self._files.expiry()
        except (OSError, ValueError) as error:
            self._seen = found
            log.error(
                "cannot use the new TLS files: the previous ones stay in use", error=str(error), cert=cert, key=key
            )
            return None
        if self._files.signature() != found:
            # They are being replaced: the next connection checks them again.
            return None
        self._seen, self._expiry, self._next_warning = found, expiry, 0.0
        log.info("loaded new TLS files", cert=cert, expires=expiry.isoformat())
        self._warn()
        return loaded

    def _warn(self) -> None:
        """Logs that the certificate has expired or soon will, at most once a day."""
        left = self._expiry - datetime.now(UTC)
        if left < WARNING and time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + WARN_EVERY
            state = "has expired" if left <= timedelta(0) else "will expire soon"
            log.warning(f"the TLS certificate {state}", cert=str(self._files.cert), expires=self._expiry.isoformat())


def credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Returns credentials that follow the files: new connections get the new certificate, open ones keep theirs.

    Raises:
        RuntimeError: The files cannot be used.
    """
    try:
        reloading = _Reloading(files)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"cannot use the TLS files: {error}: check {files.cert} and {files.key}") from error
    return grpc.dynamic_ssl_server_credentials(
        reloading.first,
        reloading.fetch,  # type: ignore[arg-type]  # the stubs lack None, which stands for no change
        require_client_authentication=files.client_ca is not None,
    )


def _signature(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    # The last one changes with the owner and the mode, too: they may make the file readable.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
