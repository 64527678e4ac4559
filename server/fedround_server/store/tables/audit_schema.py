"""The tables of the audit log."""

from peewee import BigIntegerField, CharField, CompositeKey, TextField

from fedround_server.store.tables.base import InstantField, Row, id_field


class AuditRow(Row):
    """One entry of the audit log; what does not apply is empty. Rows are never changed and never removed."""

    chain = id_field()
    sequence = BigIntegerField()
    time = InstantField()
    user_id = id_field()
    action = CharField(max_length=32)
    training_id = id_field()
    model_id = id_field()
    subject = CharField(max_length=64)
    facts = TextField()
    previous_hash = CharField(max_length=64)
    hash = CharField(max_length=64)

    class Meta:
        table_name = "audit"
        primary_key = CompositeKey("chain", "sequence")
        indexes = ((("training_id", "action", "subject"), False), (("model_id", "action", "subject"), False))


class AuditHeadRow(Row):
    """The last entry of an audit chain: the lock that orders its entries.

    `start` is the sequence of the entry of the server's chain behind which the chain begins; 0 for that chain itself.
    """

    chain = id_field(primary_key=True)
    sequence = BigIntegerField()
    hash = CharField(max_length=64)
    start = BigIntegerField()

    class Meta:
        table_name = "audit_head"


class RecordedHeadRow(Row):
    """The last head of a training's audit chain that the server's chain has.

    It is apart from the head, so that recording heads locks none of them.
    """

    chain = id_field(primary_key=True)
    sequence = BigIntegerField()

    class Meta:
        table_name = "audit_recorded_head"
