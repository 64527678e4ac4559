"""The table of what trainings with differential privacy have spent."""

from peewee import IntegerField

from fedround_server.store.tables.base import Row, id_field


class PrivacyAccountRow(Row):
    """How many rounds of a training were charged, and how many its budget allows; null without a budget."""

    training_id = id_field(primary_key=True)
    rounds = IntegerField()
    rounds_allowed = IntegerField(null=True)

    class Meta:
        table_name = "privacy_account"
