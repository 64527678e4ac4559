"""`fedround collect`: give back the disk space of files that nothing needs."""

from __future__ import annotations

import typer

from fedround_client.command.output import Format, FormatOption, as_dict, echo, echo_json
from fedround_client.command.session import client_of


def collect(context: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Delete the files that nothing needs any more now, instead of within a day. For admins.

    These are the files of removed models and trainings, of versions and updates that retention has dropped, and of
    uploads that were not continued for a day. Files that were stored within the last hour stay.
    """
    with client_of(context) as client:
        found = client.collect_files()
    if form is Format.JSON:
        echo_json(as_dict(found))
    elif not found.num_files:
        echo("No file was deleted: all are needed, or were stored within the last hour.")
    else:
        files = "file" if found.num_files == 1 else "files"
        echo(f"Deleted {found.num_files} {files} of {found.size_bytes:,} bytes.")
