"""Which database a data directory has, and the note that it was copied to PostgreSQL."""

from pathlib import Path

NAME = "fedround.db"
MOVED = "database.moved"
"""The note, which has the name of the database in PostgreSQL."""


def find_database(data_dir: Path, url: str) -> str | Path:
    """Returns the database of a server: that of a URL, or the SQLite file of its data directory if the URL is empty.

    Raises:
        RuntimeError: The file was copied to PostgreSQL, and is not to be used any more.
    """
    if url:
        return url
    path, note = data_dir / NAME, data_dir / MOVED
    # Also a note that a crash has left empty is one.
    if note.exists():
        place = note.read_text(encoding="utf-8").strip() or "PostgreSQL"
        raise RuntimeError(
            f"the database of {data_dir} was copied to {place}: set --database or FEDROUND_DATABASE; to go back to"
            f" {path}, if no server has used the copy, remove {note}"
        )
    return path
