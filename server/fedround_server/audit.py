"""`python -m fedround_server.audit`: writes the audit log to stdout, from the database, without a server.

One JSON object a line: the entries in their order, then {"head": "SEQUENCE:HASH"}.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from datetime import timedelta
from typing import TextIO

from pydantic import ValidationError

from fedround_server.config import Settings
from fedround_server.domain.audit import EPOCH, AuditEntry
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.store.db.run import reading
from fedround_server.store.verbs.audit import find_entries, find_head

BATCH = 500


def main(argv: list[str] | None = None) -> int:
    """Writes the audit log; settings come from where the server has them.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0, or 1 if the database cannot be read or nobody reads on, or 2 for settings that make no sense.
    """
    parser = argparse.ArgumentParser(prog="python -m fedround_server.audit", description=__doc__, allow_abbrev=False)
    for name in ("data_dir", "database"):
        help_ = Settings.model_fields[name].description
        parser.add_argument("--" + name.replace("_", "-"), default=None, metavar="VALUE", help=help_)
    chosen = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        settings = Settings(**chosen)
    except ValidationError as error:
        sys.stderr.write(f"error: {error.errors()[0]['msg']}\n")
        return 2
    try:
        with reading(settings.database or settings.data_dir / "fedround.db"):
            write(sys.stdout)
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads this has found what is wrong; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (StoreUnavailable, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def write(file: TextIO) -> None:
    """Writes the whole log."""
    head = find_head()
    after = 0
    while entries := find_entries(after, head.sequence, BATCH):
        file.writelines(json.dumps(_to_json(entry)) + "\n" for entry in entries)
        after = entries[-1].sequence
    file.write(json.dumps({"head": f"{head.sequence}:{head.hash}"}) + "\n")


def _to_json(entry: AuditEntry) -> dict[str, str | int]:
    fields = asdict(entry)
    time_us = (fields.pop("time") - EPOCH) // timedelta(microseconds=1)
    return {"sequence": fields.pop("sequence"), "time_us": time_us, **fields}


if __name__ == "__main__":
    sys.exit(main())
