"""`python -m fedround_server.audit`: exports the audit log from the database to stdout, without a server.

The output has one JSON object per line: the entries of the server's chain in order, then
{"head": "SEQUENCE:HASH", "chain": ""}, then the same of the chain of each training, which is named by its id.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import TextIO

from pydantic import ValidationError

from fedround_server.config import Settings, problems
from fedround_server.domain.audit import EPOCH, SERVER, AuditEntry, AuditHead
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.connection import reading, reading_one_state
from fedround_server.store.db.place import find_database
from fedround_server.store.queries.audit import find_entries, find_head, read_page

BATCH = 500


def main(argv: list[str] | None = None) -> int:
    """Exports the audit log; reads the same settings as the server, from the arguments of the process by default.

    Returns:
        The exit code: 0; 1 if the database cannot be read or stdout was closed; 2 for invalid settings.
    """
    parser = argparse.ArgumentParser(prog="python -m fedround_server.audit", description=__doc__, allow_abbrev=False)
    for name in ("config", "data_dir", "database"):
        help_ = Settings.model_fields[name].description
        parser.add_argument("--" + name.replace("_", "-"), default=None, metavar="VALUE", help=help_)
    chosen = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        settings = Settings(**chosen)
    except ValidationError as error:
        for problem in problems(error, chosen):
            sys.stderr.write(f"error: {problem}\n")
        return 2
    try:
        with reading(find_database(settings.data_dir, settings.database)), reading_one_state():
            write(sys.stdout)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; without this, flushing the buffer at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (StoreUnavailable, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def write(file: TextIO) -> None:
    """Writes the whole log to a file: the server's chain, then those of the trainings, each with its head."""
    head = find_head(SERVER)
    after = 0
    while entries := find_entries(SERVER, after, head.sequence, BATCH):
        _write(file, entries)
        after = entries[-1].sequence
    _write(file, [head])
    position: tuple[str, int] | None = (SERVER, after)
    while position is not None:
        page = read_page(*position, head.sequence, BATCH)
        _write(file, page.items)
        position = page.next


def _write(file: TextIO, items: Iterable[AuditEntry | AuditHead]) -> None:
    file.writelines(json.dumps(_to_json(item)) + "\n" for item in items)


def _to_json(item: AuditEntry | AuditHead) -> dict[str, str | int]:
    if isinstance(item, AuditHead):
        return {"head": str(item), "chain": item.chain}
    fields = asdict(item)
    time_us = (fields.pop("time") - EPOCH) // timedelta(microseconds=1)
    return {"sequence": fields.pop("sequence"), "time_us": time_us, **fields}


if __name__ == "__main__":
    sys.exit(main())
