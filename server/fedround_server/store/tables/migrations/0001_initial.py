"""The first schema: a frozen copy of the tables as they were in 0.1.0."""

from typing import Any

from peewee import (
    BigIntegerField,
    BooleanField,
    CharField,
    CompositeKey,
    DoubleField,
    IntegerField,
    Model,
    TextField,
)


def up(_migrator: Any, db: Any) -> None:
    """Creates all tables."""

    class Users(Model):
        user_id = CharField(max_length=36, primary_key=True)
        name = CharField(max_length=250, unique=True)
        role = CharField(max_length=16)
        create_time = BigIntegerField()
        remove_time = BigIntegerField(null=True)

        class Meta:
            table_name = "users"
            indexes = ((("role", "name"), False),)

    class Token(Model):
        token_hash = CharField(max_length=64, primary_key=True)
        user_id = CharField(max_length=36, index=True)
        create_time = BigIntegerField()
        expire_time = BigIntegerField(null=True)

        class Meta:
            table_name = "token"

    class CertificateName(Model):
        name = CharField(max_length=250, primary_key=True)
        user_id = CharField(max_length=36, index=True)

        class Meta:
            table_name = "certificate_name"

    class StoredModel(Model):
        model_id = CharField(max_length=36, primary_key=True)
        owner_id = CharField(max_length=36)
        name = CharField(max_length=200)
        description = TextField()
        source_model_id = CharField(max_length=36, null=True)
        source_version = IntegerField(null=True)
        architecture = CharField(max_length=100)
        upload_id = CharField(max_length=36, null=True)
        manifest = TextField()
        version = IntegerField()
        stored_bytes = BigIntegerField()
        create_time = BigIntegerField()
        remove_time = BigIntegerField(null=True)

        class Meta:
            table_name = "model"
            indexes = ((("owner_id", "upload_id"), True), (("owner_id", "create_time"), False))

    class ModelVersion(Model):
        model_id = CharField(max_length=36)
        version = IntegerField()
        sha256 = CharField(max_length=64, index=True)
        size_bytes = BigIntegerField()
        create_time = BigIntegerField()
        stored = BooleanField()
        posterior_sha256 = CharField(max_length=64, index=True, null=True)
        posterior_size_bytes = BigIntegerField()
        posterior_rank = IntegerField()

        class Meta:
            table_name = "model_version"
            primary_key = CompositeKey("model_id", "version")

    ModelVersion.add_index(
        ModelVersion.model_id, ModelVersion.version, where=ModelVersion.stored, name="model_version_stored"
    )

    class ModelTag(Model):
        model_id = CharField(max_length=36)
        version = IntegerField()
        tag = CharField(max_length=50)

        class Meta:
            table_name = "model_tag"
            primary_key = CompositeKey("model_id", "version", "tag")

    class Training(Model):
        training_id = CharField(max_length=36, primary_key=True)
        actor_id = CharField(max_length=36)
        model_id = CharField(max_length=36, index=True)
        spec = TextField()
        state = CharField(max_length=16, index=True)
        round = IntegerField()
        model_version = IntegerField()
        best_version = IntegerField(null=True)
        best_value = DoubleField(null=True)
        num_participants = IntegerField()
        failure_reason = CharField(max_length=64, null=True)
        failure_message = TextField(null=True)
        last_sequence = BigIntegerField()
        stored_bytes = BigIntegerField()
        request_id = CharField(max_length=36, null=True)
        start_request_id = CharField(max_length=36, null=True)
        create_time = BigIntegerField()
        start_time = BigIntegerField(null=True)
        update_time = BigIntegerField()
        remove_time = BigIntegerField(null=True)

        class Meta:
            table_name = "training"
            indexes = ((("actor_id", "request_id"), True), (("actor_id", "create_time"), False))

    class TrainingClients(Model):
        training_id = CharField(max_length=36, primary_key=True)
        client_ids = TextField()

        class Meta:
            table_name = "training_clients"

    class Participant(Model):
        training_id = CharField(max_length=36)
        user_id = CharField(max_length=36)
        register_time = BigIntegerField()
        remove_time = BigIntegerField(null=True)
        after_sequence = BigIntegerField()
        until_sequence = BigIntegerField(null=True)

        class Meta:
            table_name = "participant"
            primary_key = CompositeKey("training_id", "user_id")
            indexes = ((("user_id", "register_time"), False),)

    class Round(Model):
        training_id = CharField(max_length=36)
        number = IntegerField()
        kind = CharField(max_length=16)
        state = CharField(max_length=16, index=True)
        epoch = IntegerField()
        step = IntegerField()
        attempt = IntegerField()
        model_version = IntegerField()
        members = IntegerField()
        arrived = IntegerField()
        expected = IntegerField()
        metrics = TextField(null=True)
        num_examples = BigIntegerField()
        open_time = BigIntegerField()
        deadline = BigIntegerField(null=True)
        done_time = BigIntegerField(null=True)

        class Meta:
            table_name = "round"
            primary_key = CompositeKey("training_id", "number")
            indexes = ((("training_id", "kind", "model_version"), False),)

    class Cohort(Model):
        training_id = CharField(max_length=36)
        number = IntegerField()
        user_id = CharField(max_length=36)
        removed = BooleanField()
        ask_time = BigIntegerField()

        class Meta:
            table_name = "cohort"
            primary_key = CompositeKey("training_id", "number", "user_id")

    class RoundUpdate(Model):
        update_id = CharField(max_length=36, primary_key=True)
        training_id = CharField(max_length=36)
        number = IntegerField()
        user_id = CharField(max_length=36)
        sha256 = CharField(max_length=64, index=True, null=True)
        size_bytes = BigIntegerField()
        num_examples = BigIntegerField()
        metrics = TextField()
        accept_time = BigIntegerField()

        class Meta:
            table_name = "round_update"
            indexes = ((("training_id", "number", "user_id"), True),)

    class Deal(Model):
        training_id = CharField(max_length=36)
        number = IntegerField()
        user_id = CharField(max_length=36)
        sha256 = CharField(max_length=64)
        size_bytes = BigIntegerField()

        class Meta:
            table_name = "deal"
            primary_key = CompositeKey("training_id", "number", "user_id")

    class Refusal(Model):
        training_id = CharField(max_length=36)
        number = IntegerField()
        user_id = CharField(max_length=36)
        reason = CharField(max_length=64)
        count = BigIntegerField()
        last_time = BigIntegerField()
        message = TextField()

        class Meta:
            table_name = "refusal"
            primary_key = CompositeKey("training_id", "number", "user_id", "reason")

    class Sighting(Model):
        user_id = CharField(max_length=36, primary_key=True)
        seen_time = BigIntegerField()

        class Meta:
            table_name = "sighting"

    class Event(Model):
        training_id = CharField(max_length=36)
        sequence = BigIntegerField()
        kind = CharField(max_length=32)
        audience = CharField(max_length=36)
        number = IntegerField(null=True)
        payload = TextField()
        create_time = BigIntegerField()

        class Meta:
            table_name = "event"
            primary_key = CompositeKey("training_id", "sequence")

    class Audit(Model):
        sequence = BigIntegerField(primary_key=True)
        time = BigIntegerField()
        user_id = CharField(max_length=36)
        action = CharField(max_length=32)
        training_id = CharField(max_length=36)
        model_id = CharField(max_length=36)
        subject = CharField(max_length=64)
        facts = TextField()
        previous_hash = CharField(max_length=64)
        hash = CharField(max_length=64)

        class Meta:
            table_name = "audit"
            indexes = ((("training_id", "action", "subject"), False), (("model_id", "action", "subject"), False))

    class AuditHead(Model):
        id = IntegerField(primary_key=True)
        sequence = BigIntegerField()
        hash = CharField(max_length=64)

        class Meta:
            table_name = "audit_head"

    tables = [
        Users,
        Token,
        CertificateName,
        StoredModel,
        ModelVersion,
        ModelTag,
        Training,
        TrainingClients,
        Participant,
        Round,
        Cohort,
        RoundUpdate,
        Deal,
        Refusal,
        Sighting,
        Event,
        Audit,
        AuditHead,
    ]
    db.bind(tables)
    db.create_tables(tables)
    AuditHead.insert(id=1, sequence=0, hash="0" * 64).execute()
