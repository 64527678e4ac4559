"""Domain objects to messages."""

from dataclasses import asdict
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from fedround.v1 import event_pb2, model_pb2, round_pb2, training_pb2, user_pb2
from fedround_server.coordinator.subscription import GoingAway, Heartbeat
from fedround_server.domain import event as events
from fedround_server.domain.event import Event
from fedround_server.domain.failure import ParticipantFailure
from fedround_server.domain.model import POSTERIOR, BlobRef, Model, ModelVersion, TensorSpec, VersionView
from fedround_server.domain.privacy import PrivacySpent
from fedround_server.domain.report import MetricReport, MetricSpread
from fedround_server.domain.token import Token
from fedround_server.domain.training import Training, TrainingFailure, TrainingSpec
from fedround_server.domain.update import Update, is_number
from fedround_server.domain.user import User
from fedround_server.services import aggregation, config, pages, policy, tensor_selection, transport, uncertainty

MAX_PARTICIPANTS = 10_000


def timestamp(time: datetime | None) -> Timestamp | None:
    """Encodes a point in time."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def user(found: User) -> user_pb2.User:
    """Encodes a user."""
    return user_pb2.User(
        user_id=found.user_id,
        name=found.name,
        role=user_pb2.Role.Value(f"ROLE_{found.role.value}"),
        create_time=timestamp(found.create_time),
        labels=found.labels,
    )


def token(found: Token, last_use: datetime | None) -> user_pb2.Token:
    """Encodes what may be shown of a token."""
    return user_pb2.Token(
        token_id=found.token_id,
        create_time=timestamp(found.create_time),
        expire_time=timestamp(found.expire_time),
        last_use_time=timestamp(last_use),
    )


def model(found: Model) -> model_pb2.Model:
    """Encodes a model, with the tensors that it was loaded with, as far as there is room."""
    return model_pb2.Model(
        model_id=found.model_id,
        name=found.name,
        description=found.description,
        owner_id=found.owner_id,
        version=found.latest.version,
        sha256=found.latest.blob.sha256,
        size_bytes=found.latest.blob.size_bytes,
        tensors=pages.fitting(sorted(found.manifest.items()), _tensor),
        num_tensors=len(found.manifest),
        create_time=timestamp(found.create_time),
        update_time=timestamp(found.latest.create_time),
        source_model_id=found.source_model_id or "",
        source_version=found.source_version,
        architecture=found.architecture,
    )


def _tensor(entry: tuple[str, TensorSpec]) -> model_pb2.TensorInfo:
    name, spec = entry
    return model_pb2.TensorInfo(name=name, dtype=spec.dtype.name, shape=spec.shape)


def model_version(found: VersionView) -> model_pb2.ModelVersion:
    """Encodes a version with its tags and metrics."""
    version = found.version
    posterior = version.artifacts.get(POSTERIOR)
    return model_pb2.ModelVersion(
        model_id=version.model_id,
        version=version.version,
        sha256=version.blob.sha256,
        size_bytes=version.blob.size_bytes,
        **tensor_selection.parts(version.blob),
        create_time=timestamp(version.create_time),
        tags=found.tags,
        stored=version.stored,
        metrics=found.metrics,
        posterior=None
        if posterior is None
        else model_pb2.PosteriorInfo(
            sha256=posterior.blob.sha256, size_bytes=posterior.blob.size_bytes, rank=posterior.details["rank"]
        ),
    )


def model_info(found: ModelVersion | events.ModelInfo) -> event_pb2.ModelInfo:
    """Encodes a model version by reference."""
    return event_pb2.ModelInfo(
        model_id=found.model_id,
        version=found.version,
        sha256=found.blob.sha256,
        size_bytes=found.blob.size_bytes,
        base_size_bytes=0 if isinstance(found.blob, BlobRef) else found.blob.base.size_bytes,
        **tensor_selection.parts(found.blob),
    )


def metric_report(found: MetricReport) -> model_pb2.MetricReport:
    """Encodes metrics of a round."""
    return model_pb2.MetricReport(
        training_id=found.training_id,
        round=found.round,
        kind=round_kind(found.kind),
        model_version=found.model_version,
        reporter_id=found.reporter_id or "",
        num_examples=found.num_examples,
        num_reporters=found.num_reporters,
        num_participants=found.num_participants,
        reporter_ids=found.reporter_ids,
        spread={name: _spread(one) for name, one in found.spread.items()},
        metrics={name: value for name, value in found.metrics.items() if is_number(value)},
        text_metrics={name: value for name, value in found.metrics.items() if isinstance(value, str)},
        list_metrics={
            name: event_pb2.MetricList(values=map(float, value))
            for name, value in found.metrics.items()
            if isinstance(value, list)
        },
    )


def _spread(found: MetricSpread) -> model_pb2.MetricSpread:
    by_label = {
        label: model_pb2.LabelMean(mean=one.mean, num_reporters=one.num_reporters)
        for label, one in found.by_label.items()
    }
    return model_pb2.MetricSpread(
        min=found.minimum,
        median=found.median,
        max=found.maximum,
        num_reporters=found.num_reporters,
        by_label=by_label,
    )


def training_spec(spec: TrainingSpec, *, for_actor: bool, listed: bool) -> training_pb2.TrainingSpec:
    """Encodes a spec with the defaults filled in; who else takes part is for the actor, and not for lists."""
    message = training_pb2.TrainingSpec(
        name=spec.name,
        description=spec.description,
        model_id=spec.model_id or "",
        target_num_updates=spec.target_num_updates,
        metric_names=spec.metric_names,
        client_ids=spec.client_ids if for_actor and not listed else (),
        aggregation=aggregation.write(spec.aggregation),
        uncertainty=uncertainty.write(spec.uncertainty),
        round_policy=policy.write(spec.round_policy),
        evaluation_policy=None if spec.evaluation_policy is None else policy.write(spec.evaluation_policy),
        cohort=None if spec.cohort is None else policy.write_cohort(spec.cohort, for_actor=for_actor),
        evaluation=training_pb2.Evaluation.Value(f"EVALUATION_{spec.evaluation.value}"),
        request_id=(spec.request_id or "") if for_actor else "",
        max_num_examples=spec.max_num_examples,
        max_update_norm=spec.max_update_norm,
        update_precision=transport.write_precision(spec.update_precision),
        stochastic_rounding=spec.stochastic_rounding,
        tensor_precisions=transport.write_rules(spec.tensor_precisions),
        allow_non_finite_buffers=spec.allow_non_finite_buffers,
        integer_tensors=training_pb2.IntegerTensors.Value(f"INTEGER_TENSORS_{spec.integer_tensors.value}"),
        keep_versions=spec.keep_versions,
        keep_update_rounds=spec.keep_update_rounds,
        allow_relays=spec.allow_relays,
        model_version=spec.model_version,
        architecture=spec.architecture,
        tensors=tensor_selection.write(spec.tensors),
        config=config.write(spec.config),
        client_config=config.write_clients(spec.client_config) if for_actor else {},
    )
    if spec.selection is not None:
        message.selection.metric = spec.selection.metric
        message.selection.goal = training_pb2.Goal.Value(f"GOAL_{spec.selection.goal.value}")
        message.selection.patience = spec.selection.patience
    return message


def training(
    found: Training, reader_id: str, *, listed: bool = False, privacy: PrivacySpent | None = None
) -> training_pb2.Training:
    """Encodes a training as its actor, or a participant, may see it."""
    for_actor = reader_id == found.actor_id
    seen = [id_ for id_ in found.participant_ids if for_actor or id_ == reader_id]
    failure = found.failure
    return training_pb2.Training(
        training_id=found.training_id,
        spec=training_spec(found.spec, for_actor=for_actor, listed=listed),
        actor_id=found.actor_id,
        participant_ids=seen[:MAX_PARTICIPANTS],
        state=training_pb2.TrainingState.Value(f"TRAINING_STATE_{found.state.value}"),
        round=found.round,
        updates_arrived=found.updates_arrived,
        updates_expected=found.updates_expected,
        model_id=found.model_id,
        model_version=found.model_version,
        error=None if failure is None else _failure(failure, for_actor=for_actor),
        create_time=timestamp(found.create_time),
        start_time=timestamp(found.start_time),
        update_time=timestamp(found.update_time),
        best_version=found.best_version,
        best_value=found.best_value,
        num_participants=found.num_participants,
        failures=map(participant_failure, found.failures),
        stopped=found.stop is not None,
        paused=found.paused,
        round_closed=found.round_closed,
        shadow_model_ids=found.shadow_model_ids if for_actor else (),
        privacy=None if privacy is None else training_pb2.PrivacySpent(**asdict(privacy)),
        actor_name=found.actor_name,
    )


def participant_failure(found: ParticipantFailure) -> training_pb2.ParticipantFailure:
    """Encodes why a round does not wait for a participant."""
    return training_pb2.ParticipantFailure(
        participant_id=found.user_id,
        participant_name=found.name,
        round=found.round,
        reason=found.reason,
        message=found.message,
        fail_time=timestamp(found.time),
    )


def _failure(failure: TrainingFailure, *, for_actor: bool) -> training_pb2.TrainingError:
    message = failure.actor_message if for_actor else failure.message
    return training_pb2.TrainingError(reason=failure.reason, message=message)


def round_kind(kind: str) -> event_pb2.RoundKind.ValueType:
    """Encodes a kind of round."""
    return event_pb2.RoundKind.Value(f"ROUND_KIND_{kind}")


def receipt(found: Update) -> round_pb2.UpdateReceipt:
    """Encodes the promise to count an update."""
    return round_pb2.UpdateReceipt(
        update_id=found.update_id,
        training_id=found.training_id,
        round=found.round,
        sha256=found.blob.sha256,
        accept_time=timestamp(found.accept_time),
        num_examples=found.num_examples,
    )


def event(found: Event | Heartbeat | GoingAway) -> event_pb2.Event:
    """Encodes an event."""
    message = event_pb2.Event(training_id=found.training_id, sequence=found.sequence)
    if isinstance(found, Heartbeat):
        message.heartbeat.sequence = found.sequence
        return message
    if isinstance(found, GoingAway):
        message.going_away.message = "the server is shutting down: subscribe again, and resume after the last sequence"
        return message
    message.create_time.FromDatetime(found.create_time)
    _payload(message, found.payload)
    return message


def _payload(message: event_pb2.Event, payload: events.Payload) -> None:
    match payload:
        case events.TrainingStarted():
            message.training_started.target_num_updates = payload.target_num_updates
            message.training_started.model.CopyFrom(model_info(payload.model))
        case events.RoundStarted():
            started = message.round_started
            started.round = payload.round
            started.kind = round_kind(payload.kind)
            started.model.CopyFrom(model_info(payload.model))
            if payload.deadline is not None:
                started.deadline.FromDatetime(payload.deadline)
            started.aggregation.CopyFrom(aggregation.write(payload.aggregation))
            started.metric_names.extend(payload.metric_names)
            started.local_rounds = payload.local_rounds
            started.assigned = payload.assigned
            started.attempt = payload.attempt
            started.submitted = payload.submitted
            started.update_precision = transport.write_precision(payload.transport.precision)
            started.stochastic_rounding = payload.transport.stochastic_rounding
            started.tensor_precisions.extend(transport.write_rules(payload.transport.rules))
            for name, value in config.write(payload.config).items():
                started.config[name].CopyFrom(value)
            if payload.swag is not None:
                started.swag.CopyFrom(uncertainty.write(payload.swag).swag)
            started.trainable.extend(payload.tensors.trainable)
            started.private.extend(payload.tensors.private)
            started.external_base_sha256 = payload.tensors.external_base_sha256 or ""
        case events.RoundExtended():
            message.round_extended.round = payload.round
            message.round_extended.attempt = payload.attempt
            if payload.deadline is not None:
                message.round_extended.deadline.FromDatetime(payload.deadline)
            message.round_extended.updates_arrived = payload.updates_arrived
            message.round_extended.updates_expected = payload.updates_expected
        case events.UpdateAccepted():
            message.update_accepted.update_id = payload.update_id
            message.update_accepted.round = payload.round
            message.update_accepted.participant_id = payload.participant_id
            message.update_accepted.num_examples = payload.num_examples
            message.update_accepted.updates_arrived = payload.updates_arrived
            message.update_accepted.updates_expected = payload.updates_expected
        case events.UpdateLost():
            message.update_lost.update_id = payload.update_id
            message.update_lost.round = payload.round
            message.update_lost.participant_id = payload.participant_id
            message.update_lost.updates_arrived = payload.updates_arrived
            message.update_lost.updates_expected = payload.updates_expected
        case events.ParticipantFailed():
            message.participant_failed.round = payload.round
            message.participant_failed.participant_id = payload.participant_id
            message.participant_failed.participant_name = payload.participant_name
            message.participant_failed.reason = payload.reason
            message.participant_failed.message = payload.message
            message.participant_failed.updates_arrived = payload.updates_arrived
            message.participant_failed.updates_expected = payload.updates_expected
        case events.WorkNotNeeded():
            message.work_not_needed.round = payload.round
            message.work_not_needed.num_updates = payload.num_updates
            message.work_not_needed.num_participants = payload.num_participants
        case events.RoundClosed():
            message.round_closed.round = payload.round
            message.round_closed.kind = round_kind(payload.kind)
            message.round_closed.model_version = payload.model_version
            message.round_closed.num_updates = payload.num_updates
            message.round_closed.metrics.update({**payload.metrics, **payload.more_metrics})
            message.round_closed.not_finite.update(payload.not_finite)
        case events.ClientRemoved():
            message.client_removed.client_id = payload.client_id
        case events.TrainingFinished():
            message.training_finished.model_id = payload.model_id
            message.training_finished.model_version = payload.model_version
            message.training_finished.stopped_early = payload.stopped_early
            message.training_finished.stopped = payload.stopped
            message.training_finished.reason = payload.reason
        case events.TrainingPaused():
            message.training_paused.SetInParent()
        case events.TrainingResumed():
            message.training_resumed.SetInParent()
        case events.StopRequested():
            message.stop_requested.SetInParent()
        case events.ConfigUpdated():
            message.config_updated.from_round = payload.from_round
        case events.TrainingFailed():
            message.training_failed.reason = payload.reason
            message.training_failed.message = payload.message
        case events.TrainingRemoved():
            message.training_removed.SetInParent()
