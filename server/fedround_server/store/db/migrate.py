"""Brings the tables of a database to the version of this server, also while servers of other versions use it.

The number of a schema is that of its last migration. A migration says in `OLDEST` the schema of the oldest servers that
can use the tables that it leaves; without it, only servers that have the migration can. The database remembers the
highest of these numbers: `server_state.oldest_schema`. Servers below it are not left behind at work, and do not start.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import peewee
from playhouse.migrations import Migration, Runner

from fedround_server.store.db.connection import Connections, first_error
from fedround_server.store.db.lease import NOW

log = logging.getLogger(__name__)
# It logs one line for each migration.
logging.getLogger("peewee.migrations").setLevel(logging.WARNING)

MIGRATIONS = Path(__file__).parents[1] / "tables" / "migrations"
LOCK_TIMEOUT = "500ms"
"""How long the calls of other servers may wait for a migration that waits for theirs; below PostgreSQL's
deadlock_timeout, so that the migration gives way, and no call."""
PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 0.5
LOCKED = ("55P03", "40P01")
"""The codes of PostgreSQL for a lock that is not available, and for a deadlock."""
OLDER_REPLICAS = f"""
SELECT name, version, expire_time > {NOW} FROM replica WHERE schema_version < %s ORDER BY name FOR UPDATE
"""  # noqa: S608 -- a constant


@dataclass(frozen=True, slots=True)
class Schema:
    """The schema of a database, as this version sees it.

    Attributes:
        own: The number of the schema of this version.
        oldest: That of the oldest servers that can use the database; 0 if it does not say.
        missing: The migrations of this version that it does not have yet.
        unknown: The names of those that it has, and this version does not.
    """

    own: int
    oldest: int
    missing: tuple[Migration, ...]
    unknown: tuple[str, ...]

    @property
    def can_be_used(self) -> bool:
        """Whether this version can use it, once what is missing was added."""
        return not self.unknown or (not self.missing and 0 < self.oldest <= self.own)


def own_schema() -> int:
    """Returns the number of the schema of this version."""
    number: int = max(one.idx for one in Migration.load_directory(str(MIGRATIONS)))
    return number


def read_schema(database: Connections) -> Schema:
    """Reads which migrations a database has."""
    status = Runner(database, str(MIGRATIONS)).status()
    oldest = 0
    if database.table_exists("server_state"):
        ((oldest,),) = database.execute_sql("SELECT oldest_schema FROM server_state").fetchall()
    return Schema(
        own=own_schema(),
        oldest=oldest,
        missing=tuple(one for one in status if not one.applied),
        unknown=tuple(one.name for one in status if one.path is None),
    )


def migrate(database: Connections, name: str, begin: Callable[[], AbstractContextManager[None]]) -> None:
    """Applies the missing migrations in one transaction.

    Args:
        database: The database.
        name: How operators know it.
        begin: Begins a transaction.

    Raises:
        RuntimeError: This version cannot use the database, servers at work could not use it any more, or its tables
            are in use for too long.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with begin():
                schema = _migrate(database, name)
            break
        except peewee.OperationalError as error:
            if getattr(first_error(error), "sqlstate", None) not in LOCKED:
                raise
            if time.monotonic() > end:
                raise RuntimeError(
                    f"the database {name} cannot be migrated: others have used its tables for {PATIENCE_SECONDS:.0f} s"
                    " without a pause, pg_dump for example: try again when they have ended"
                ) from error
        time.sleep(PAUSE_SECONDS)
    if len(schema.missing) == schema.own:
        log.info("created the database %s", name)
    elif schema.missing:
        before = schema.own - len(schema.missing)
        log.info("migrated the database %s from version %d to %d", name, before, schema.own)
    elif schema.unknown:
        log.warning(
            "the database %s was migrated by a newer version of fedround (it has %s), beside which this one can go on",
            *(name, schema.unknown[-1]),
        )


def _migrate(database: Connections, name: str) -> Schema:
    """Applies the missing migrations; returns the schema from before."""
    schema = read_schema(database)
    if not schema.can_be_used:
        raise RuntimeError(
            f"the database {name} was used by a newer version of fedround (it has {schema.unknown[-1]}): install that"
            " version, or restore a backup from before"
        )
    if schema.missing:
        oldest = max(getattr(one.load(), "OLDEST", one.idx) for one in schema.missing)
        if not isinstance(database, peewee.SqliteDatabase):
            database.execute_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            if schema.oldest:
                _leave_behind(database, name, oldest, schema.missing)
        Runner(database, str(MIGRATIONS)).up()
        _set_oldest(database, oldest)
    return schema


def _leave_behind(database: Connections, name: str, oldest: int, missing: Sequence[Migration]) -> None:
    """Makes sure that no server is at work, or begins, that cannot use the tables behind the migrations.

    Raises:
        RuntimeError: One is at work.
    """
    # Until the transaction ends, no server takes a lease: it reads this row first.
    _set_oldest(database, oldest)
    # Locked, a lease that is being renewed is seen as it will be.
    rows = database.execute_sql(OLDER_REPLICAS, (oldest,)).fetchall()
    if alive := [f"{replica} (version {version})" for replica, version, is_alive in rows if is_alive]:
        raise RuntimeError(
            f"the database {name} cannot be migrated to {missing[-1].name} while older servers use it, which could not"
            f" go on: stop {', '.join(alive)} first, or upgrade to a version in between"
        )


def _set_oldest(database: Connections, oldest: int) -> None:
    mark = database.param
    statement = f"UPDATE server_state SET oldest_schema = {mark} WHERE oldest_schema < {mark}"  # noqa: S608
    database.execute_sql(statement, (oldest, oldest))
