"""Certificates of authorities that a test makes up, and servers that use them."""

import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from calls import Person


class Certificate:
    """A certificate with its key, in files and in memory."""

    def __init__(self, chain: bytes, key: bytes) -> None:
        self.chain, self.key = chain, key

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Puts certificate and key to NAME.pem and NAME.key, each in one step, as who renews them does."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, content in zip(paths, (self.chain, self.key), strict=True):
            replace(path, content)
        return paths

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.chain.decode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)


class Authority:
    """Who signs certificates."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self.pem = self._authority.cert_pem.bytes()

    def issue(self, *names: str, **options: Any) -> Certificate:
        """Issues a certificate for host names, addresses and e-mail addresses."""
        issued = self._authority.issue_cert(*names, **options)
        return Certificate(b"".join(pem.bytes() for pem in issued.cert_chain_pems), issued.private_key_pem.bytes())

    def issue_uri(self, uri: str) -> Certificate:
        """Issues a certificate for a URI, as SPIFFE does."""
        model = self._authority.issue_cert("model.example.org")
        like = x509.load_pem_x509_certificate(model.cert_chain_pems[0].bytes())
        builder = (
            x509.CertificateBuilder()
            .subject_name(like.subject)
            .issuer_name(like.issuer)
            .public_key(like.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(like.not_valid_before_utc)
            .not_valid_after(datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        )
        signer: Any = serialization.load_pem_private_key(self._authority.private_key_pem.bytes(), None)
        signed = builder.sign(signer, hashes.SHA256())
        return Certificate(signed.public_bytes(serialization.Encoding.PEM), model.private_key_pem.bytes())

    def person(self, address: str, client: Certificate | None = None, token: str = "") -> Person:
        """A user with a connection of its own to a server whose certificate this authority signed."""
        pair: dict[str, Any] = {} if client is None else {"private_key": client.key, "certificate_chain": client.chain}
        credentials = grpc.ssl_channel_credentials(self.pem, **pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return Person(grpc.secure_channel(address, credentials, options=options), token)


def presented(address: str) -> bytes:
    """What a server presents to a new connection, whether or not it wants a certificate too."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain) as encrypted:
        certificate = encrypted.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate
