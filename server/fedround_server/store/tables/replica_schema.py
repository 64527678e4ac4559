"""The tables by which the servers of one PostgreSQL database know each other; on SQLite they are not used."""

from peewee import BigIntegerField, BooleanField, CharField, CompositeKey, IntegerField

from fedround_server.store.tables.base import InstantField, JsonField, Row, id_field


class ReplicaRow(Row):
    """A server and its lease, by the database's clock. What it told of connections has versions up to the last one.

    The schema is that of its version, which may be older or newer than that of the database.
    The journal is that of its data directory: the next server with the same one takes the place of this one.
    """

    replica_id = id_field(primary_key=True)
    journal_id = id_field()
    name = CharField(max_length=100)
    version = CharField(max_length=50)
    schema_version = IntegerField()
    start_time = InstantField()
    expire_time = InstantField()
    presence_version = BigIntegerField()

    class Meta:
        table_name = "replica"


class PresenceRow(Row):
    """A user that is, or was, connected to a replica; seen_time is null while it is.

    Each row that a replica writes has a higher version than all before, so that others read only what is new.
    """

    replica_id = id_field()
    user_id = id_field()
    version = BigIntegerField()
    listening = BooleanField()
    seen_time = InstantField(null=True)
    details = JsonField()

    class Meta:
        table_name = "presence"
        primary_key = CompositeKey("replica_id", "user_id")
        indexes = ((("replica_id", "version"), False),)


class ServerStateRow(Row):
    """What all servers share, in a single row.

    Where the files are, how often credentials have changed, and the schema of the oldest servers that can use the
    database.
    """

    id = IntegerField(primary_key=True)
    files_id = id_field()
    credential_changes = BigIntegerField()
    oldest_schema = IntegerField()

    class Meta:
        table_name = "server_state"


class CredentialChangeRow(Row):
    """A change of users or credentials, by its number; the user is empty if no call under way depends on it."""

    number = BigIntegerField(primary_key=True)
    user_id = id_field()

    class Meta:
        table_name = "credential_change"
