"""Reads of where the files of a database are."""

from fedround_server.store.tables.replica_schema import ServerStateRow


def find_files_id() -> str:
    """Returns the id of the place where the database has its files; empty if it does not know."""
    return str(ServerStateRow.select(ServerStateRow.files_id).scalar())
