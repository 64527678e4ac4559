"""Damages files as a disk might."""

from pathlib import Path


def flip(path: Path, position: int) -> None:
    """Flips a bit of a byte of a file, in place; a negative position counts from the end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    # Blobs are read-only.
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(data)


def stored(data_dir: Path, sha256: str) -> Path:
    """Where a server keeps a blob."""
    return data_dir / "objects" / sha256[:2] / sha256
