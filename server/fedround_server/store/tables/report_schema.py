"""The table of what aggregations have found out about updates."""

from peewee import CompositeKey, IntegerField

from fedround_server.store.tables.base import JsonField, Row, id_field


class RoundReportRow(Row):
    """What the aggregation of a round has found out about the updates that counted: facts by user.

    Apart from the rounds, which are read all the time, and in one row, since a commit has to write it.
    """

    training_id = id_field()
    number = IntegerField()
    facts = JsonField()

    class Meta:
        table_name = "round_report"
        primary_key = CompositeKey("training_id", "number")
