"""Remembers in a data directory where its files are, so that no server looks for them elsewhere."""

from pathlib import Path

from fedround_server.host.sync import sync_file, sync_folder

NAME = "objects.url"


def read_place(data_dir: Path) -> str:
    """Returns the URL of the object store that has the files of a data directory; empty if it has them itself."""
    try:
        return (data_dir / NAME).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def write_place(data_dir: Path, url: str) -> None:
    """Remembers where the files of a data directory are, durably."""
    path = data_dir / NAME
    if not url:
        path.unlink(missing_ok=True)
    else:
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.write(url + "\n")
            file.flush()
            sync_file(file.fileno())
        part.replace(path)
    sync_folder(data_dir)


def check_place(data_dir: Path, url: str) -> None:
    """Checks that the files of a data directory are where a server looks for them; url is empty for the directory.

    Raises:
        RuntimeError: They are elsewhere.
    """
    place = read_place(data_dir)
    if place == url:
        return
    if place:
        raise RuntimeError(
            f"objects: the files of {data_dir} are in {place}: set --objects {place}, or copy them into the directory"
            f" with `fedround objects copy {place} {data_dir}`"
        )
    if next(data_dir.glob("objects/*/*"), None) is not None:
        raise RuntimeError(
            f"objects: the files of {data_dir} are in that directory: leave out --objects, or copy them with `fedround"
            f" objects copy {data_dir} {url}`"
        )
