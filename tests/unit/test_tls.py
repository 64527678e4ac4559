"""TLS files: when they are loaded again."""

from pathlib import Path

from fedround_server.tls import TlsFiles


def test_files_that_become_readable_are_looked_at_again(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text("cert")
    key.write_text("key")
    key.chmod(0)
    files = TlsFiles(cert, key, None)
    before = files.signature()
    assert files.signature() == before
    key.chmod(0o600)
    assert files.signature() != before
