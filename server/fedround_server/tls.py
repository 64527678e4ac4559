"""TLS credentials from files that may be replaced while the server runs."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

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

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the configuration of the files; None if they have not changed, or cannot be used."""
        found = self._files.signature()
        if found == self._seen:
            return None
        try:
            loaded = self._files.load()
        except OSError as error:
            self._seen = found
            log.error("cannot use the new TLS files: the previous ones stay in use", error=str(error))
            return None
        if self._files.signature() != found:
            # They are being replaced: the next connection checks them again.
            return None
        self._seen = found
        log.info("loaded new TLS files", cert=str(self._files.cert))
        return loaded


def credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Returns credentials that follow the files: new connections get the new certificate, open ones keep theirs.

    Raises:
        RuntimeError: The files cannot be used.
    """
    try:
        reloading = _Reloading(files)
    except OSError as error:
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
