"""What trainings with differential privacy have spent."""

from typing import Any

from peewee import CharField, IntegerField, Model


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database without such trainings."""

    class PrivacyAccount(Model):
        training_id = CharField(max_length=36, primary_key=True)
        rounds = IntegerField()
        rounds_allowed = IntegerField(null=True)

        class Meta:
            table_name = "privacy_account"

    db.bind([PrivacyAccount])
    db.create_tables([PrivacyAccount])
