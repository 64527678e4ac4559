"""`python -m fedround_server.backup`: what `fedround backup` and `fedround restore` run."""

import argparse
import errno
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedround_server.backup.layout import BackupError, Manifest
from fedround_server.backup.restore import restore, verify
from fedround_server.backup.take import take
from fedround_server.blobs.objects import read_place
from fedround_server.config import Settings
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.place import find_database

URL_HELP = "others can see arguments, so set FEDROUND_DATABASE if it has a password"
NEXT_STEPS = """Next:
  - start the server: fedround serve --data-dir {data_dir}
  - tokens that were valid at the time of the backup are valid again; admin.token is not in a backup
  - what was accepted after the backup is lost: running trainings go on from there, and the SDK's participants train
    and send again what is missing"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: `backup` or `restore`, and its arguments; those of the process by default.

    Returns:
        The exit code: 0; 1 after an error, or if a file is damaged; 2 for a wrong command line or invalid settings.
    """
    command, *words = sys.argv[1:] if argv is None else argv
    parser = _verifier() if words[:1] == ["verify"] else restore_parser() if command == "restore" else backup_parser()
    options = parser.parse_args(words[1:] if words[:1] == ["verify"] else words)
    try:
        return int(options.run(options))
    except (BackupError, StoreUnavailable, RuntimeError) as error:
        return _fail(str(error), options)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return _fail("--link needs the backup on the file system of the data directory: leave it out", options)
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), options)


def backup_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fedround backup`."""
    parser = _parser(
        "fedround backup",
        "Backs up a server, running or not, on its machine and as its user. `fedround backup verify BACKUP` reads all"
        " files of a backup.",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="The data directory of the server; by default its setting.")
    parser.add_argument("--database", metavar="URL", help=f"The postgresql:// URL, if the server uses one; {URL_HELP}.")
    parser.add_argument(
        "--output", metavar="BACKUP", type=Path, required=True, help="The backup; one that exists gets a new snapshot."
    )
    parser.add_argument(
        "--keep", type=_positive, default=1, metavar="N", help="Snapshots to keep, with the new one. Default: 1."
    )
    parser.add_argument(
        "--link", action="store_true", help="Make hard links instead of copies: fast, and no help if the disk is lost."
    )
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="Copy all files, and not the database.",
    )
    parser.add_argument("--pg-dump", default="pg_dump", metavar="PATH", help="The program. Default: pg_dump.")
    parser.set_defaults(run=_take)
    return parser


def _verifier() -> argparse.ArgumentParser:
    parser = _parser("fedround backup verify", "Reads all files of a backup; exits with 1 if one is damaged.")
    parser.add_argument("backup", metavar="BACKUP", type=Path, help="The backup.")
    parser.set_defaults(run=_verify)
    return parser


def restore_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fedround restore`."""
    parser = _parser("fedround restore", "Restores a backup into a new data directory, and verifies every file.")
    parser.add_argument("backup", metavar="BACKUP", type=Path, help="The backup.")
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, required=True, help="The new data directory: missing, or empty."
    )
    parser.add_argument("--database", metavar="URL", help=f"An empty postgresql:// database; {URL_HELP}.")
    parser.add_argument("--snapshot", default="", metavar="NAME", help="A snapshot of the backup. Default: the latest.")
    parser.add_argument("--pg-restore", default="pg_restore", metavar="PATH", help="The program. Default: pg_restore.")
    parser.set_defaults(run=_restore)
    return parser


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="For people, or JSON for programs. Default: table."
    )
    return parser


def _take(options: argparse.Namespace) -> int:
    settings = _settings(data_dir=options.data_dir, database=options.database)
    if place := settings.objects or read_place(settings.data_dir):
        raise BackupError(
            f"the files of this server are in {place}: back up the database with its own tools, and keep versions of"
            " the bucket; see docs/objects.md"
        )
    taken = take(
        settings.data_dir,
        settings.database if options.files_only else find_database(settings.data_dir, settings.database),
        options.output,
        link=options.link,
        keep=options.keep,
        files_only=options.files_only,
        pg_dump=options.pg_dump,
    )
    if options.format == "json":
        _print_json(asdict(taken))
    else:
        if taken.manifest is None:
            _print(f"Copied {_count(taken.num_copied, 'file')} of {taken.bytes_copied:,} bytes to {options.output}.")
        else:
            _print(f"Made the snapshot {taken.snapshot} in {options.output}.")
            _print_contents(taken.manifest)
            _print(f"New files: {taken.num_copied}, of {taken.bytes_copied:,} bytes.")
    for digest in taken.damaged:
        sys.stderr.write(f"error: {digest} is damaged or missing in the data directory, and not in the backup\n")
    return 1 if taken.damaged else 0


def _verify(options: argparse.Namespace) -> int:
    found = verify(options.backup)
    if options.format == "json":
        _print_json(asdict(found))
    else:
        for problem in found.problems:
            sys.stderr.write(f"error: {problem}\n")
        read, snapshots = _count(found.num_files, "file"), _count(len(found.snapshots), "snapshot")
        _print(f"Read {read} of {snapshots}: {_count(len(found.problems), 'problem')}.")
    return 1 if found.problems else 0


def _restore(options: argparse.Namespace) -> int:
    settings = _settings(data_dir=str(options.data_dir), database=options.database)
    manifest = restore(
        options.backup,
        options.data_dir,
        snapshot=options.snapshot,
        database=settings.database,
        pg_restore=options.pg_restore,
    )
    if options.format == "json":
        _print_json(None if manifest is None else asdict(manifest))
        return 0
    if manifest is None:
        _print(f"Restored the files to {options.data_dir}.")
    else:
        _print(f"Restored the snapshot of {manifest.time} to {options.data_dir}.")
        _print_contents(manifest)
        for digest in manifest.damaged:
            sys.stderr.write(f"warning: {digest} was damaged or missing when the backup was made\n")
    _print(NEXT_STEPS.format(data_dir=options.data_dir))
    return 0


def _settings(**chosen: str | None) -> Settings:
    try:
        return Settings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise BackupError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _print_contents(manifest: Manifest) -> None:
    states = ", ".join(f"{count} {state}" for state, count in manifest.trainings.items())
    _print(f"Trainings: {states or 'none'}. Models: {manifest.num_models}. Users: {manifest.num_users}.")
    _print(f"Files: {manifest.num_files}, of {manifest.size_bytes:,} bytes.")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def _fail(message: str, options: argparse.Namespace) -> int:
    if options.format == "json":
        error = {"code": "FAILED_PRECONDITION", "reason": "BACKUP", "message": message, "metadata": {}}
        sys.stderr.write(json.dumps(error) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n")
    return 1


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))


if __name__ == "__main__":
    sys.exit(main())
