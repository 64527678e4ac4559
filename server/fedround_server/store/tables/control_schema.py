"""The tables of what actors do with their trainings: their configuration, and requests to control them."""

from peewee import CharField, CompositeKey, IntegerField

from fedround_server.store.tables.base import JsonField, Row, id_field


class TrainingConfigRow(Row):
    """The configuration of a training from a round on, until the next row."""

    training_id = id_field()
    from_round = IntegerField()
    config = JsonField()

    class Meta:
        table_name = "training_config"
        primary_key = CompositeKey("training_id", "from_round")


class ClientConfigRow(Row):
    """The configuration of a participant from a round on, until the next row; on top of the training's."""

    training_id = id_field()
    user_id = id_field()
    from_round = IntegerField()
    config = JsonField()

    class Meta:
        table_name = "client_config"
        primary_key = CompositeKey("training_id", "user_id", "from_round")


class ControlRequestRow(Row):
    """A request to control a training that was carried out: a repeated one changes nothing."""

    training_id = id_field()
    request_id = id_field()
    action = CharField(max_length=32)

    class Meta:
        table_name = "control_request"
        primary_key = CompositeKey("training_id", "request_id")
