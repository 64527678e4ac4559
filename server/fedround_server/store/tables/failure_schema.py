"""The tables of what participants could not deliver in a round, and of what the server rejected."""

from peewee import BigIntegerField, CharField, CompositeKey, IntegerField, TextField

from fedround_server.store.tables.base import InstantField, Row, id_field


class RejectedUpdateRow(Row):
    """How often a participant's submissions in a round were rejected for a reason, and the last message."""

    training_id = id_field()
    number = IntegerField()
    user_id = id_field()
    reason = CharField(max_length=64)
    count = BigIntegerField()
    last_time = InstantField()
    message = TextField()

    class Meta:
        table_name = "rejected_update"
        primary_key = CompositeKey("training_id", "number", "user_id", "reason")


class ParticipantFailureRow(Row):
    """Why a round does not wait for a member of its cohort, which has submitted nothing."""

    training_id = id_field()
    number = IntegerField()
    user_id = id_field()
    reason = CharField(max_length=64)
    message = TextField()
    fail_time = InstantField()

    class Meta:
        table_name = "participant_failure"
        primary_key = CompositeKey("training_id", "number", "user_id")
