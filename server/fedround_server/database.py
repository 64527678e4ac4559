"""`python -m fedround_server.database`: what `fedround database` runs. It copies a SQLite database to PostgreSQL."""

import argparse
import os
import sys
from pathlib import Path

from fedround_server.domain.errors import StoreUnavailable
from fedround_server.host.file_lock import locked_folder
from fedround_server.host.secret_file import write_secret
from fedround_server.store.db.connection import database_name, is_postgres
from fedround_server.store.db.copy import copy_to_postgres
from fedround_server.store.db.place import MOVED, NAME, find_database
from fedround_server.store.tables.schema import TABLES


def main(argv: list[str] | None = None) -> int:
    """Runs a command, with the arguments of the process by default.

    Returns:
        The exit code: 0; 1 after an error; 2 for a wrong command line.
    """
    options = copy_parser().parse_args(_words(sys.argv[1:] if argv is None else argv))
    if not is_postgres(options.database):
        return _fail("--database: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if not (options.data_dir / NAME).is_file():
        return _fail(
            f"there is no database {options.data_dir / NAME}: give the --data-dir of a server that uses SQLite"
        )
    try:
        with locked_folder(options.data_dir):
            source = Path(find_database(options.data_dir, ""))
            note = options.data_dir / MOVED
            counts = copy_to_postgres(
                source, options.database, TABLES, _show, lambda: write_secret(note, database_name(options.database))
            )
    except (RuntimeError, StoreUnavailable) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.stdout.write(
        f"Copied {sum(counts.values()):,} rows to {database_name(options.database)}, and compared all {len(counts)}"
        f" tables.\nNext: start the server with this data directory and --database. {source} is as it was, and no"
        f" server starts on it any more.\n"
    )
    return 0


def copy_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fedround database copy`."""
    parser = argparse.ArgumentParser(
        prog="fedround database copy",
        description="Copies the SQLite database of a stopped server into an empty PostgreSQL database.",
        allow_abbrev=False,
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="The data directory of the server.")
    parser.add_argument(
        "--database",
        default=os.environ.get("FEDROUND_DATABASE", ""),
        help="The URL of PostgreSQL; others can see arguments, so set FEDROUND_DATABASE if it has a password.",
    )
    return parser


def _words(argv: list[str]) -> list[str]:
    """Returns the arguments behind the name of the only command."""
    if argv[:1] != ["copy"]:
        copy_parser().parse_args(["--help"] if argv[:1] in (["--help"], ["-h"], []) else argv[:1])
    return argv[1:]


def _show(table: str, num_rows: int) -> None:
    if num_rows:
        sys.stderr.write(f"{table}: {num_rows:,} {'row' if num_rows == 1 else 'rows'}\n")
        sys.stderr.flush()


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
