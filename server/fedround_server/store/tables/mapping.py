"""Rows to dataclasses and back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, get_args

from fedround_server.aggregators import from_aggregation, to_aggregation
from fedround_server.domain import uncertainty
from fedround_server.domain.aggregation import UpdateFacts
from fedround_server.domain.audit import AuditEntry
from fedround_server.domain.config import Config
from fedround_server.domain.event import Event, ModelInfo, Payload, RoundStarted
from fedround_server.domain.failure import ParticipantFailure
from fedround_server.domain.model import (
    Artifact,
    BaseAndDelta,
    BlobRef,
    Dtype,
    Manifest,
    Model,
    ModelVersion,
    TensorSpec,
    VersionFile,
)
from fedround_server.domain.privacy import PrivacyAccount
from fedround_server.domain.report import Report
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import Round, RoundState
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.domain.token import Token
from fedround_server.domain.training import (
    Evaluation,
    Goal,
    IntegerTensors,
    Selection,
    Stop,
    Training,
    TrainingFailure,
    TrainingSpec,
    TrainingState,
)
from fedround_server.domain.uncertainty import Swag, to_uncertainty
from fedround_server.domain.update import Update
from fedround_server.domain.user import Role, User
from fedround_server.store.tables.audit_schema import AuditRow
from fedround_server.store.tables.base import InstantField, SharedJson
from fedround_server.store.tables.policy import from_cohort, from_policy, to_cohort, to_policy
from fedround_server.store.tables.schema import (
    ArtifactRow,
    AssignmentRow,
    EventRow,
    ModelBaseRow,
    ModelRow,
    ModelVersionRow,
    RoundRow,
    TokenRow,
    TrainingRow,
    UpdateRow,
    UserRow,
)
from fedround_server.store.tables.transport import TRANSPORT_KEYS, from_transport, to_transport

DEADLINE = InstantField(null=True)
ENDED = tuple(state.value for state in TrainingState if state.is_ended)
NOT_ENDED = tuple(state.value for state in TrainingState if not state.is_ended)
PAYLOADS: Mapping[str, type[Payload]] = {kind.__name__: kind for kind in get_args(Payload)}


def to_user(row: UserRow) -> User:
    """Reads a user."""
    return User(row.user_id, row.name, Role(row.role), row.create_time, row.labels)


def to_token(row: TokenRow) -> Token:
    """Reads a token."""
    return Token(row.token_hash, row.create_time, row.expire_time)


def from_manifest(manifest: Manifest) -> dict[str, list[Any]]:
    """Writes a manifest as {name: [dtype, shape]}."""
    return {name: [spec.dtype.name, list(spec.shape)] for name, spec in manifest.items()}


def to_manifest(data: Mapping[str, list[Any]]) -> Manifest:
    """Reads a manifest."""
    return {name: TensorSpec(Dtype[dtype], tuple(shape)) for name, (dtype, shape) in data.items()}


def to_blob(row: ModelVersionRow | ModelBaseRow | ArtifactRow | UpdateRow | AssignmentRow) -> BlobRef:
    """Reads the reference to a file that is stored as it is.

    Raises:
        TypeError: The row is a report, which has no file.
    """
    if row.sha256 is None:
        raise TypeError("a report has no file")
    return BlobRef(row.sha256, row.size_bytes, bytes(row.checksums or b""))


def from_blob(blob: BlobRef | None) -> dict[str, Any]:
    """Writes the reference to a file as the columns of a row; None for a report."""
    if blob is None:
        return {"sha256": None, "size_bytes": 0, "checksums": None}
    return {"sha256": blob.sha256, "size_bytes": blob.size_bytes, "checksums": blob.checksums or None}


def from_facts(report: Mapping[str, UpdateFacts]) -> dict[str, dict[str, Any]]:
    """Writes facts about updates by user, without those that are not known."""
    return {
        user_id: {name: value for name, value in asdict(one).items() if value is not None}
        for user_id, one in report.items()
    }


def to_facts(data: Mapping[str, Mapping[str, Any]]) -> dict[str, UpdateFacts]:
    """Reads facts about updates by user."""
    return {user_id: UpdateFacts(**one) for user_id, one in data.items()}


def to_version_file(row: ModelVersionRow, base: ModelBaseRow | None) -> VersionFile:
    """Reads the file of a version, given the base of its model, if there is one."""
    if row.delta_sha256 is None or base is None:
        return to_blob(row)
    delta = BlobRef(row.delta_sha256, row.delta_size_bytes or 0, bytes(row.delta_checksums or b""))
    return BaseAndDelta(row.sha256, row.size_bytes, to_blob(base), delta)


def from_version_file(file: VersionFile) -> dict[str, Any]:
    """Writes the file of a version as the columns of its row."""
    if isinstance(file, BlobRef):
        return from_blob(file) | {"delta_sha256": None, "delta_size_bytes": None, "delta_checksums": None}
    delta = {f"delta_{name}": value for name, value in from_blob(file.delta).items()}
    return {"sha256": file.sha256, "size_bytes": file.size_bytes, "checksums": None} | delta


def to_version(row: ModelVersionRow, base: ModelBaseRow | None, artifacts: Iterable[ArtifactRow] = ()) -> ModelVersion:
    """Reads a version of a model with its artifacts."""
    found = {one.kind: Artifact(one.kind, to_blob(one), one.details) for one in artifacts}
    file = to_version_file(row, base)
    return ModelVersion(row.model_id, row.version, file, row.create_time, row.stored, found)


def to_model(row: ModelRow, latest: ModelVersion) -> Model:
    """Reads a model with its latest version."""
    return Model(
        model_id=row.model_id,
        name=row.name,
        description=row.description,
        owner_id=row.owner_id,
        source_model_id=row.source_model_id,
        manifest=to_manifest(row.manifest or {}),
        latest=latest,
        create_time=row.create_time,
        source_version=row.source_version,
        architecture=row.architecture,
    )


def from_spec(spec: TrainingSpec) -> dict[str, Any]:
    """Writes a spec without its client_ids and its configuration; the rest is fixed when the training is created."""
    return {
        "name": spec.name,
        "description": spec.description,
        "target_num_updates": spec.target_num_updates,
        "metric_names": list(spec.metric_names),
        "aggregation": from_aggregation(spec.aggregation),
        **from_policy(spec.round_policy),
        "evaluation_policy": None if spec.evaluation_policy is None else from_policy(spec.evaluation_policy),
        "cohort": None if spec.cohort is None else from_cohort(spec.cohort),
        "evaluation": spec.evaluation.name,
        "max_num_examples": spec.max_num_examples,
        "max_update_norm": spec.max_update_norm,
        **from_transport(spec.transport),
        "allow_non_finite_buffers": spec.allow_non_finite_buffers,
        "integer_tensors": spec.integer_tensors.name,
        "model_id": spec.model_id,
        "model_version": spec.model_version,
        "request_id": spec.request_id,
        "selection": None
        if spec.selection is None
        else {"metric": spec.selection.metric, "goal": spec.selection.goal.name, "patience": spec.selection.patience},
        "keep_versions": spec.keep_versions,
        "keep_update_rounds": spec.keep_update_rounds,
        "architecture": spec.architecture,
        "uncertainty": {"method": spec.uncertainty.name, "options": uncertainty.options_of(spec.uncertainty)},
        "tensors": asdict(spec.tensors),
        "allow_relays": spec.allow_relays,
    }


def to_spec(data: Mapping[str, Any], client_ids: Sequence[str] = ()) -> TrainingSpec:
    """Reads a spec; one that is shared is read once."""
    if not isinstance(data, SharedJson):
        return _read_spec(data, client_ids)
    if data.read is None:
        data.read = _read_spec(data)
    spec: TrainingSpec = data.read
    return replace(spec, client_ids=tuple(client_ids)) if client_ids else spec


def _read_spec(data: Mapping[str, Any], client_ids: Sequence[str] = ()) -> TrainingSpec:
    selection, transport = data["selection"], to_transport(data)
    return TrainingSpec(
        name=data["name"],
        description=data["description"],
        target_num_updates=data["target_num_updates"],
        metric_names=tuple(data["metric_names"]),
        client_ids=tuple(client_ids),
        aggregation=to_aggregation(data["aggregation"]),
        round_policy=to_policy(data),
        evaluation_policy=to_policy(data["evaluation_policy"]) if data.get("evaluation_policy") else None,
        cohort=to_cohort(data["cohort"]) if data.get("cohort") else None,
        evaluation=Evaluation[data["evaluation"]],
        max_num_examples=data["max_num_examples"],
        max_update_norm=data["max_update_norm"],
        update_precision=transport.precision,
        stochastic_rounding=transport.stochastic_rounding,
        tensor_precisions=transport.rules,
        allow_non_finite_buffers=data.get("allow_non_finite_buffers", False),
        integer_tensors=IntegerTensors[data.get("integer_tensors", "HEAVIEST")],
        model_id=data["model_id"],
        model_version=data["model_version"],
        request_id=data["request_id"],
        selection=None
        if selection is None
        else Selection(selection["metric"], Goal[selection["goal"]], selection["patience"]),
        keep_versions=data["keep_versions"],
        keep_update_rounds=data.get("keep_update_rounds"),
        architecture=data["architecture"],
        uncertainty=to_uncertainty(data["uncertainty"]["method"], data["uncertainty"]["options"]),
        tensors=_tensors(data.get("tensors", {})),
        allow_relays=data.get("allow_relays", False),
    )


def _tensors(data: Mapping[str, Any]) -> TensorSelection:
    """Reads a selection; without one, all tensors are meant."""
    return TensorSelection(
        tuple(data.get("trainable", ())), tuple(data.get("private", ())), data.get("external_base_sha256")
    )


def to_training(
    row: TrainingRow,
    client_ids: Sequence[str],
    participant_ids: tuple[str, ...],
    current: RoundRow | None,
    failures: tuple[ParticipantFailure, ...] = (),
    config: Config | None = None,
    client_config: Mapping[str, Config] | None = None,
    shadow_model_ids: tuple[str, ...] = (),
    account: PrivacyAccount | None = None,
    actor_name: str = "",
) -> Training:
    """Reads a training, with its current round if it has one, and its configuration if that is to be shown."""
    failure = None
    if row.failure_reason is not None:
        failure = TrainingFailure(row.failure_reason, row.failure_message or "", tuple(row.failure_missing))
    return Training(
        training_id=row.training_id,
        spec=replace(to_spec(row.spec, client_ids), config=config or {}, client_config=client_config or {}),
        actor_id=row.actor_id,
        participant_ids=participant_ids,
        state=TrainingState(row.state),
        round=row.round,
        updates_arrived=0 if current is None else current.arrived,
        updates_expected=0 if current is None else current.expected,
        model_id=row.model_id,
        model_version=row.model_version,
        failure=failure,
        last_sequence=row.last_sequence,
        create_time=row.create_time,
        start_time=row.start_time,
        update_time=row.update_time,
        best_version=row.best_version,
        best_value=row.best_value,
        num_participants=row.num_participants,
        failures=failures,
        paused=row.paused,
        stop=None if row.stop is None else Stop(row.stop),
        round_closed=current is not None and RoundState(current.state).is_closed,
        shadow_model_ids=shadow_model_ids,
        account=account,
        actor_name=actor_name,
    )


def to_round(row: RoundRow) -> Round:
    """Reads a round."""
    return Round(
        training_id=row.training_id,
        number=row.number,
        kind=KINDS[row.kind],
        state=RoundState(row.state),
        epoch=row.epoch,
        model_version=row.model_version,
        arrived=row.arrived,
        expected=row.expected,
        open_time=row.open_time,
        deadline=row.deadline,
        done_time=row.done_time,
        step=row.step,
        attempt=row.attempt,
        failed=row.failed,
        members=row.members,
        needed=row.needed,
        eligible=row.eligible,
        population=row.population or 0,
        chosen=row.chosen,
        wait_end=row.wait_end,
    )


def to_update(row: UpdateRow) -> Update:
    """Reads an update.

    Raises:
        TypeError: It is a report, which has no file.
    """
    return Update(
        update_id=row.update_id,
        training_id=row.training_id,
        round=row.number,
        user_id=row.user_id,
        blob=to_blob(row),
        num_examples=row.num_examples,
        accept_time=row.accept_time,
        local_steps=row.local_steps,
        initial_loss=row.initial_loss,
        base_version=row.base_version,
    )


def to_report(row: UpdateRow) -> Report:
    """Reads a report, which is a row without a file."""
    return Report(row.update_id, row.training_id, row.number, row.user_id, row.num_examples, row.accept_time)


def from_payload(payload: Payload) -> dict[str, Any]:
    """Writes the payload of an event."""
    data = asdict(payload)
    if "model" in data:
        # Events only name files.
        file = data["model"]["blob"]
        for one in (file, file.get("base", {}), file.get("delta", {})):
            one.pop("checksums", None)
    if isinstance(payload, RoundStarted):
        data["aggregation"] = from_aggregation(payload.aggregation)
        data |= from_transport(payload.transport)
        # The others are resolved for each reader.
        del data["transport"], data["config"], data["config_of"], data["asked"]
    if "deadline" in data:
        data["deadline"] = DEADLINE.db_value(data["deadline"])
    return data


def to_event(row: EventRow) -> Event:
    """Reads an event."""
    data = dict(row.payload)
    if "model" in data:
        data["model"] = ModelInfo(**{**data["model"], "blob": _named_file(data["model"]["blob"])})
    if "aggregation" in data:
        data["aggregation"] = to_aggregation(data["aggregation"])
        data["metric_names"] = tuple(data["metric_names"])
        data["swag"] = Swag(**data["swag"]) if data.get("swag") else None
        data["tensors"] = _tensors(data.get("tensors", {}))
        data["transport"] = to_transport({key: data.pop(key) for key in TRANSPORT_KEYS if key in data})
    if "deadline" in data:
        data["deadline"] = DEADLINE.python_value(data["deadline"])
    return Event(row.training_id, row.sequence, row.create_time, PAYLOADS[row.kind](**data))


def _named_file(data: Mapping[str, Any]) -> VersionFile:
    """Reads the file of a version as an event names it."""
    if "delta" not in data:
        return BlobRef(**data)
    return BaseAndDelta(data["sha256"], data["size_bytes"], BlobRef(**data["base"]), BlobRef(**data["delta"]))


def from_entry(entry: AuditEntry) -> dict[str, Any]:
    """Writes an entry of the audit log."""
    return {one.name: getattr(entry, one.name) for one in fields(entry)}


def to_entry(row: AuditRow) -> AuditEntry:
    """Reads an entry of the audit log."""
    return AuditEntry(**{one.name: getattr(row, one.name) for one in fields(AuditEntry)})
