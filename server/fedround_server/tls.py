"""TLS: certificate, key and client CA from files that may be replaced while the server runs."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

log = structlog.get_logger("fedround.tls")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where they are; without a client CA nobody is asked for a certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def signature(self) -> tuple[tuple[int, ...] | None, ...]:
        """Returns what changes when a file is replaced; it costs no reading."""
        return tuple(map(_signature, (self.cert, self.key, self.client_ca)))

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Reads the files.

        Raises:
            OSError: One cannot be read, or is no PEM file of its kind; or key and certificate do not match.
        """
        # gRPC says of bad files that nobody could connect, one connection after the other.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key, password="")
        if self.client_ca is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self.client_ca)
        client_ca = None if self.client_ca is None else self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], client_ca)


class _Reloading:
    """Looks at the files at each new connection, and takes them all together or none."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.signature()
        self.first = files.load()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what the files say now; None while nothing new and good is there."""
        found = self._files.signature()
        if found == self._seen:
            return None
        try:
            loaded = self._files.load()
        except OSError as error:
            self._seen = found
            log.error("the new TLS files are not taken, the ones before stay", error=str(error))
            return None
        if self._files.signature() != found:
            # They are being replaced: the next connection finds them whole.
            return None
        self._seen = found
        log.info("took new TLS files", cert=str(self._files.cert))
        return loaded


def credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Makes credentials that follow the files: new connections get the new certificate, old ones live on.

    Raises:
        RuntimeError: The files are no good.
    """
    try:
        reloading = _Reloading(files)
    except OSError as error:
        raise RuntimeError(f"cannot use the TLS files: {error}: check {files.cert} and {files.key}") from error
    return grpc.dynamic_ssl_server_credentials(
        reloading.first,
        reloading.fetch,  # type: ignore[arg-type]  # the stubs forget that None stands for no change
        require_client_authentication=files.client_ca is not None,
    )


def _signature(path: Path | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    # The last one tells of a change of owner or mode, too: it may make a file readable.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
