"""The table of the models of shadow aggregations."""

from peewee import CompositeKey, IntegerField

from fedround_server.store.tables.base import Row, id_field


class ShadowRow(Row):
    """The model that a shadow aggregation of a training makes; the position is that in the training's spec."""

    training_id = id_field()
    position = IntegerField()
    model_id = id_field(index=True)

    class Meta:
        table_name = "shadow"
        primary_key = CompositeKey("training_id", "position")
