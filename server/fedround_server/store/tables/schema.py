"""The tables. Migrations make them; a test compares the two.

A row that refers to a file has the checksums of the file's blocks, which `BlobRef` describes; rows of earlier versions
have none until the file is verified.
"""

from peewee import (
    BigIntegerField,
    BlobField,
    BooleanField,
    CharField,
    CompositeKey,
    DoubleField,
    IntegerField,
    TextField,
)

# Their tables are among TABLES.
from fedround_server.store.tables import (  # noqa: F401
    audit_schema,
    control_schema,
    failure_schema,
    privacy_schema,
    replica_schema,
    report_schema,
    shadow_schema,
)
from fedround_server.store.tables.base import InstantField, JsonField, MetricsField, Row, SharedJsonField, id_field


class UserRow(Row):
    """A user; a removed one stays, renamed, for the history that it is part of."""

    user_id = id_field(primary_key=True)
    name = CharField(max_length=250, unique=True)
    role = CharField(max_length=16)
    create_time = InstantField()
    remove_time = InstantField(null=True)
    labels = JsonField(default=dict)

    class Meta:
        table_name = "users"
        indexes = ((("role", "name"), False),)


class TokenRow(Row):
    """A token that is not revoked; an expired one stays until the next rotation, to be told as such."""

    token_hash = CharField(max_length=64, primary_key=True)
    user_id = id_field(index=True)
    create_time = InstantField()
    expire_time = InstantField(null=True)

    class Meta:
        table_name = "token"


class CertificateNameRow(Row):
    """A name in client certificates that are a user's."""

    name = CharField(max_length=250, primary_key=True)
    user_id = id_field(index=True)

    class Meta:
        table_name = "certificate_name"


class ModelRow(Row):
    """A model; stored_bytes counts the stored files of its versions, of their artifacts, and its base."""

    model_id = id_field(primary_key=True)
    owner_id = id_field()
    name = CharField(max_length=200)
    description = TextField()
    source_model_id = id_field(null=True)
    source_version = IntegerField(null=True)
    architecture = CharField(max_length=100)
    upload_id = id_field(null=True)
    manifest = JsonField()
    is_finite = BooleanField()
    version = IntegerField()
    stored_bytes = BigIntegerField()
    create_time = InstantField()
    remove_time = InstantField(null=True)

    class Meta:
        table_name = "model"
        indexes = ((("owner_id", "upload_id"), True), (("owner_id", "create_time"), False))


class ModelVersionRow(Row):
    """One version of a model.

    A version that is stored as a base and a delta has the delta's columns: digest and size are then those of the whole
    file, which has no checksums, since it is not stored.
    """

    model_id = id_field()
    version = IntegerField()
    sha256 = CharField(max_length=64, index=True)
    size_bytes = BigIntegerField()
    checksums = BlobField(null=True)
    delta_sha256 = CharField(max_length=64, index=True, null=True)
    delta_size_bytes = BigIntegerField(null=True)
    delta_checksums = BlobField(null=True)
    create_time = InstantField()
    stored = BooleanField()

    class Meta:
        table_name = "model_version"
        primary_key = CompositeKey("model_id", "version")


# A commit looks for versions to drop: most of a long training's were dropped long ago.
ModelVersionRow.add_index(
    ModelVersionRow.model_id, ModelVersionRow.version, where=ModelVersionRow.stored, name="model_version_stored"
)


class ModelBaseRow(Row):
    """The base of a model whose versions are stored as deltas; removed with the last of them."""

    model_id = id_field(primary_key=True)
    sha256 = CharField(max_length=64, index=True)
    size_bytes = BigIntegerField()
    checksums = BlobField(null=True)

    class Meta:
        table_name = "model_base"


class ArtifactRow(Row):
    """A file that belongs to a version of a model, such as a SWAG posterior; of each kind a version has at most one."""

    model_id = id_field()
    version = IntegerField()
    kind = CharField(max_length=32)
    sha256 = CharField(max_length=64, index=True)
    size_bytes = BigIntegerField()
    checksums = BlobField(null=True)
    details = JsonField()

    class Meta:
        table_name = "artifact"
        primary_key = CompositeKey("model_id", "version", "kind")


class TagRow(Row):
    """A tag on a version of a model; `last` is not kept, it is the latest version."""

    model_id = id_field()
    version = IntegerField()
    tag = CharField(max_length=50)

    class Meta:
        table_name = "model_tag"
        primary_key = CompositeKey("model_id", "version", "tag")


class TrainingRow(Row):
    """A training. Every verb that changes something of a training locks this row first.

    num_participants counts those that are present, stored_bytes the files of its updates; stop is when its actor had it
    stopped, if it did.
    """

    training_id = id_field(primary_key=True)
    actor_id = id_field()
    model_id = id_field(index=True)
    spec = SharedJsonField()
    state = CharField(max_length=16, index=True)
    round = IntegerField()
    model_version = IntegerField()
    best_version = IntegerField(null=True)
    best_value = DoubleField(null=True)
    num_participants = IntegerField()
    failure_reason = CharField(max_length=64, null=True)
    failure_message = TextField(null=True)
    failure_missing = JsonField()
    last_sequence = BigIntegerField()
    stored_bytes = BigIntegerField()
    paused = BooleanField()
    stop = CharField(max_length=16, null=True)
    request_id = id_field(null=True)
    start_request_id = id_field(null=True)
    create_time = InstantField()
    start_time = InstantField(null=True)
    update_time = InstantField()
    remove_time = InstantField(null=True)

    class Meta:
        table_name = "training"
        indexes = (
            (("actor_id", "request_id"), True),
            (("actor_id", "create_time"), False),
            # A viewer lists the trainings of all users.
            (("create_time", "training_id"), False),
        )


class TrainingClientsRow(Row):
    """The clients that a training's spec names: apart from it, since every verb about a training reads the spec."""

    training_id = id_field(primary_key=True)
    client_ids = JsonField()

    class Meta:
        table_name = "training_clients"


class ParticipantRow(Row):
    """A client's part in a training. It sees the events in (after_sequence, until_sequence].

    It has failed if it failed or was absent in a round, and no round with its work is done since.
    """

    training_id = id_field()
    user_id = id_field()
    register_time = InstantField()
    remove_time = InstantField(null=True)
    after_sequence = BigIntegerField()
    until_sequence = BigIntegerField(null=True)
    rounds_left_out = IntegerField(default=0)
    failed = BooleanField(default=False)

    class Meta:
        table_name = "participant"
        primary_key = CompositeKey("training_id", "user_id")
        # Replicas look for those who were registered by others.
        indexes = ((("user_id", "register_time"), False), (("register_time",), False))


# Each commit looks for those that failed: most did not.
ParticipantRow.add_index(
    ParticipantRow.training_id, ParticipantRow.user_id, where=ParticipantRow.failed, name="participant_failed"
)


class RoundRow(Row):
    """A round, with how many members its cohort has, how many of their updates arrived, and how many of them failed.

    To count the rows at each update would take 1,000 participants a million steps. Of a cohort that was drawn, it also
    has how many could be chosen in the last draw, and were chosen in all; `needed` is null if it needs all members. The
    population is how many participants could have been asked when it was opened, connected or not; null before, and in
    rounds of earlier versions of fedround. The keeper of a closed round is the replica that aggregates it; SQLite has
    none.
    """

    training_id = id_field()
    number = IntegerField()
    kind = CharField(max_length=16)
    state = CharField(max_length=16, index=True)
    epoch = IntegerField()
    step = IntegerField()
    attempt = IntegerField()
    model_version = IntegerField()
    members = IntegerField()
    arrived = IntegerField()
    failed = IntegerField()
    expected = IntegerField()
    needed = IntegerField(null=True)
    eligible = IntegerField(null=True)
    chosen = IntegerField(null=True)
    population = IntegerField(null=True)
    metrics = JsonField(null=True)
    num_examples = BigIntegerField()
    open_time = InstantField()
    deadline = InstantField(null=True)
    wait_end = InstantField(null=True)
    done_time = InstantField(null=True)
    keeper = id_field(null=True)

    class Meta:
        table_name = "round"
        primary_key = CompositeKey("training_id", "number")
        indexes = ((("training_id", "kind", "model_version"), False),)


class CohortRow(Row):
    """A member of a round's cohort; a removed one's update of the open round does not count."""

    training_id = id_field()
    number = IntegerField()
    user_id = id_field()
    removed = BooleanField()
    ask_time = InstantField()

    class Meta:
        table_name = "cohort"
        primary_key = CompositeKey("training_id", "number", "user_id")


class UpdateRow(Row):
    """An accepted update; in an evaluation round a report, which has no file.

    local_steps and initial_loss are null unless the rule of an aggregation needs them, base_version without buffering.
    `stored` is whether its file is stored: false for reports, and for updates that were dropped.
    """

    update_id = id_field(primary_key=True)
    training_id = id_field()
    number = IntegerField()
    user_id = id_field()
    sha256 = CharField(max_length=64, index=True, null=True)
    size_bytes = BigIntegerField()
    checksums = BlobField(null=True)
    num_examples = BigIntegerField()
    local_steps = BigIntegerField(null=True)
    initial_loss = DoubleField(null=True)
    base_version = IntegerField(null=True)
    metrics = MetricsField()
    accept_time = InstantField()
    stored = BooleanField()

    class Meta:
        table_name = "round_update"
        indexes = ((("training_id", "number", "user_id"), True), (("training_id", "user_id", "base_version"), False))


UpdateRow.add_index(UpdateRow.training_id, UpdateRow.number, where=UpdateRow.stored, name="round_update_stored")


class AssignmentRow(Row):
    """The update of another participant that was assigned to a member of a round's cohort (daisy chaining)."""

    training_id = id_field()
    number = IntegerField()
    user_id = id_field()
    sha256 = CharField(max_length=64, index=True)
    size_bytes = BigIntegerField()
    checksums = BlobField(null=True)

    class Meta:
        table_name = "assignment"
        primary_key = CompositeKey("training_id", "number", "user_id")


class LastSeenRow(Row):
    """When a user was seen last, to the minute."""

    user_id = id_field(primary_key=True)
    seen_time = InstantField()

    class Meta:
        table_name = "last_seen"


ALL, ACTOR, COHORT, MISSING = "all", "actor", "cohort", "missing"
"""The audiences of events; any other one is the id of a user."""


class EventRow(Row):
    """One entry of a training's log; the actor sees all of them.

    The audience is "all", "cohort" (of the round `number`), "missing" (those of them that have not submitted in it),
    "actor", or a user.
    """

    training_id = id_field()
    sequence = BigIntegerField()
    kind = CharField(max_length=32)
    audience = CharField(max_length=36)
    number = IntegerField(null=True)
    payload = JsonField()
    create_time = InstantField()

    class Meta:
        table_name = "event"
        primary_key = CompositeKey("training_id", "sequence")


TABLES: tuple[type[Row], ...] = tuple(Row.__subclasses__())
