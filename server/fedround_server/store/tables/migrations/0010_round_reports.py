"""What the aggregation of a round has found out about its updates."""

from typing import Any

from peewee import CharField, CompositeKey, IntegerField, Model, TextField


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database without reports about updates."""

    class RoundReport(Model):
        training_id = CharField(max_length=36)
        number = IntegerField()
        facts = TextField()

        class Meta:
            table_name = "round_report"
            primary_key = CompositeKey("training_id", "number")

    db.bind([RoundReport])
    db.create_tables([RoundReport])
