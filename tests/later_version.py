"""A later version of the server, for tests beside this one: it has more migrations, and writes a new column.

The module is also the program of that version (`python tests/later_version.py serve-options...`).
"""

import os
import shutil
import sys
from pathlib import Path

from peewee import CharField

from fedround_server import app
from fedround_server.__main__ import main
from fedround_server.store.db import migrate
from fedround_server.store.tables.schema import UpdateRow

VERSION = "9.0.0"
PROGRAM = (__file__,)
"""The program, for `Server`."""
NEXT = migrate.own_schema() + 1
"""The number of the first migration that this version does not have."""
# Each table is locked and changed, and statements that were prepared before go on.
EXPAND = f"""
OLDEST = {NEXT - 1}


def up(_migrator, db):
    for table in sorted(db.get_tables()):
        db.execute_sql(f'ALTER TABLE "{{table}}" ADD COLUMN written_by VARCHAR(20)')
    db.execute_sql('CREATE TABLE later (id INTEGER PRIMARY KEY)')
"""
CONTRACT = f"""
OLDEST = {NEXT}


def up(_migrator, db):
    db.execute_sql('ALTER TABLE "model" DROP COLUMN written_by')
"""


def write_migrations(folder: Path, *added: str) -> Path:
    """Writes the migrations of this version and further ones into a folder; returns it."""
    shutil.copytree(migrate.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for number, text in enumerate(added, NEXT):
        (folder / f"{number:04}_later.py").write_text(text)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """The environment variables of the program for the migrations of a folder."""
    return {"MIGRATIONS": str(folder)}


class WrittenBy(CharField):  # type: ignore[misc]  # peewee's stubs make it Any
    """The version that has inserted a row; older ones leave it null."""

    def db_value(self, _value: object) -> str:
        """Returns the version."""
        return VERSION


if __name__ == "__main__":
    migrate.MIGRATIONS = Path(os.environ["MIGRATIONS"])
    app.installed_version = lambda: VERSION
    UpdateRow._meta.add_field("written_by", WrittenBy(max_length=20, null=True))
    sys.exit(main())
