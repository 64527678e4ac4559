"""What keeps a server from using its database, in one sentence for the operator."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peewee

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.connection import database_name, first_error, is_postgres
from fedround_server.store.db.outage import log

FULL = 1 << 20
"""Free bytes of a disk below which it is the cause of any error of SQLite."""
NO_CONNECTION = re.compile("too many (clients|connections)|connection slots")
NO_ACCESS = re.compile('authentication failed|role ".*" does not exist|no password|permission denied|pg_hba')
RESTORE = "restore the data directory from a backup, or choose another one with --data-dir"


@contextmanager
def explained(url: str | Path) -> Iterator[None]:
    """Describes the error of the database that ends the block, which the log does not mention.

    Raises:
        RuntimeError: The database cannot be used; the message names it and says what to do.
    """
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except (peewee.PeeweeException, StoreUnavailable) as error:
        text = " ".join(str(first_error(error)).split())
        raise RuntimeError(
            _postgres_problem(url, text) if is_postgres(url) else _sqlite_problem(Path(url), text)
        ) from error
    finally:
        log.setLevel(level)


def _sqlite_problem(path: Path, text: str) -> str:
    disk = os.statvfs(path.parent)
    if "full" in text or disk.f_bavail * disk.f_frsize < FULL:
        return f"the disk of {path} is full ({text}): make room, and start again"
    if "not a database" in text or "malformed" in text:
        return f"{path} is damaged, or no database of fedround ({text}): {RESTORE}"
    if "locked" in text:
        return f"{path} is used by another program ({text}): end that one, and start again"
    if "readonly" in text or "unable to open" in text:
        return f"{path} cannot be written ({text}): let the server's user write it and its folder"
    return f"{path} cannot be used ({text}): check the disk and the file, or {RESTORE}"


def _postgres_problem(url: str | Path, text: str) -> str:
    where = database_name(url)
    if NO_CONNECTION.search(text):
        return f"the database {where} has no free connection ({text}): a server needs seven, so raise max_connections"
    if NO_ACCESS.search(text):
        return f"the database {where} refuses the server ({text}): check user and password in --database"
    return f"the database {where} cannot be used ({text}): check that PostgreSQL runs there, and --database"
