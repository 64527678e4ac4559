"""Tells other replicas of changes of users and credentials."""

from fedround_server.store.tables.base import database_proxy

# The lock on the single row orders the numbers like the commits: who has seen a number has seen all before it.
NUMBER = """
WITH changed AS (UPDATE server_state SET credential_changes = credential_changes + 1 RETURNING credential_changes)
INSERT INTO credential_change (number, user_id) SELECT credential_changes, %s FROM changed
"""


def tell_of_change(user_id: str = "") -> None:
    """Has other replicas forget whom credentials belong to; to be called after all other locks are taken.

    Args:
        user_id: Whose calls under way may have to end; empty if none.
    """
    # On SQLite there is one server.
    if database_proxy.for_update:
        database_proxy.execute_sql(NUMBER, (user_id,))
