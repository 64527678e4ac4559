"""What a training is doing, in a few lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_SWAG, RoundKind
from fedround.v1.round_pb2 import ROUND_STATE_PENDING, CohortDraw, Round, RoundParticipant, RoundState
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ERROR,
    TRAINING_STATE_INITIAL,
    ParticipantFailure,
    Training,
    TrainingState,
)
from fedround_client.command.aggregation import aggregation_text
from fedround_client.command.config_options import client_config_text, config_text
from fedround_client.command.output import Format, enum_name, show, show_fields, when
from fedround_client.command.policy_text import cohort_text, policy_text
from fedround_client.command.transport import precisions_text
from fedround_client.round_number import planned_rounds, round_text

MAX_NAMES = 10
"""How many participants a line names."""

_TASKS = {ROUND_KIND_EVALUATE: "evaluation", ROUND_KIND_SWAG: "moments for SWAG"}


def show_training(
    training: Training, form: Format, *, current: Round | None = None, names: Mapping[str, str] | None = None
) -> None:
    """Prints a training: as JSON, or as lines for people.

    Args:
        training: The training.
        form: The format.
        current: Its current round, if it is open and the caller may see it.
        names: Names of users, by id.
    """
    if form is Format.JSON:
        show(training, form)
    else:
        show_fields(_lines(training, current, names or {}))


def task(kind: RoundKind.ValueType) -> str:
    """Returns what a round of a kind is for, in words."""
    return _TASKS.get(kind, "training")


def round_lines(found: Round, planned: int | None) -> Iterator[tuple[str, object]]:
    """Yields what a round is and waits for, in words."""
    attempts = f", attempt {found.attempt} of {found.max_attempts}" if found.max_attempts > 1 else ""
    yield "round", f"{round_text(found.number, planned).removeprefix('round ')}: {task(found.kind)}{attempts}"
    yield "round state", f"{enum_name(RoundState, found.state).lower()}, from version {found.model_version}"
    if found.state != ROUND_STATE_PENDING:
        yield "arrived", _arrived(found.kind, found.updates_arrived, found.updates_expected)
    if found.HasField("draw"):
        yield "cohort", _draw(found.draw)
    yield "failed", failed((one.failure for one in found.participants if one.HasField("failure")), found.num_failed)
    yield "missing", missing(found.participants, found.num_participants)
    yield "waiting for", found.waiting_for
    unnamed = found.num_registered - found.num_connected - len(found.not_connected) if found.not_connected else 0
    yield "not connected", listing([one.name for one in found.not_connected], max(0, unnamed))
    yield "opened", when(found.open_time)
    yield "deadline", when(found.deadline)
    yield "expected end", when(found.forecast_end_time)
    yield "done", when(found.done_time)


def missing(participants: Iterable[RoundParticipant], total: int = 0) -> str:
    """Returns the names of the participants whose update or report has not arrived; empty if all have.

    Args:
        participants: Participants of the round, as far as they are known.
        total: How many the round has.
    """
    known = list(participants)
    absent = [f"{one.name} ({_seen(one)})" for one in known if not one.arrived and not one.HasField("failure")]
    # Those with a missing update come first, so that all that are not listed may be missing too.
    unlisted = max(0, total - len(known)) if not any(one.arrived for one in known) else 0
    return listing(absent, unlisted)


def failed(failures: Iterable[ParticipantFailure], total: int = 0) -> str:
    """Returns the names of participants that failed, with their reasons.

    Args:
        failures: The failures, as far as they are known.
        total: How many there are.
    """
    known = [f"{one.participant_name} ({one.reason}{f': {one.message}' if one.message else ''})" for one in failures]
    return listing(known, max(0, total - len(known)))


def listing(names: list[str], more: int = 0) -> str:
    """Returns some names as text, and how many more there are."""
    more += max(0, len(names) - MAX_NAMES)
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more else "")


def _lines(training: Training, current: Round | None, names: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    spec = training.spec
    planned = planned_rounds(spec)
    yield "training", spec.name
    yield "id", training.training_id
    yield "description", spec.description
    yield "state", _state(training)
    if training.HasField("start_time") and current is None:
        yield "round", round_text(training.round, planned).removeprefix("round ")
    if current is not None:
        yield from round_lines(current, planned)
    else:
        yield "failed", failed(training.failures)
    yield "model", f"version {training.model_version} of {spec.target_num_updates}: {training.model_id}"
    if training.HasField("best_version"):
        yield "best", f"version {training.best_version}: {spec.selection.metric} {training.best_value:.6g}"
    yield "participants", _participants(training, names)
    yield "aggregation", aggregation_text(spec.aggregation, names) if spec.HasField("aggregation") else ""
    yield "cohort of a round", cohort_text(spec.cohort)
    yield "round policy", policy_text(spec.round_policy)
    yield "privacy", _privacy(training)
    yield "trainable", ", ".join(spec.tensors.trainable)
    yield "private", ", ".join(spec.tensors.private)
    yield "external base", spec.tensors.external_base_sha256
    yield "update precision", precisions_text(spec)
    yield "updates kept", _kept(spec.keep_update_rounds) if spec.HasField("keep_update_rounds") else ""
    yield "relays", "allowed" if spec.allow_relays else ""
    yield "shadow models", ", ".join(training.shadow_model_ids)
    yield "metrics", ", ".join(spec.metric_names)
    yield "config", config_text(spec.config)
    yield "client config", client_config_text(spec.client_config, names)
    yield "created", when(training.create_time)
    yield "started", when(training.start_time)
    yield "changed", when(training.update_time)


def _kept(rounds: int) -> str:
    return f"of the last {rounds} rounds" if rounds > 1 else "of the last round" if rounds else "none"


def _state(training: Training) -> str:
    if training.state == TRAINING_STATE_ERROR:
        return f"failed: {training.error.reason}: {training.error.message}"
    if training.state == TRAINING_STATE_INITIAL:
        return "not started: `fedround training start` opens the first round"
    state = enum_name(TrainingState, training.state).lower()
    if training.state == TRAINING_STATE_COMPLETED:
        if training.error.reason:
            return f"{state}: {training.error.reason}: {training.error.message}"
        return f"{state}: stopped by its actor" if training.stopped else state
    if training.stopped:
        return f"{state}, stops after this round"
    return f"{state}, paused: `fedround training resume` has rounds opened again" if training.paused else state


def _privacy(training: Training) -> str:
    """Returns what was spent; empty without differential privacy."""
    if not training.HasField("privacy"):
        return ""
    spent = training.privacy
    noun = "round" if spent.rounds == 1 else "rounds"
    text = f"epsilon {spent.epsilon:.4g} at delta {spent.delta:g} for {spent.rounds} {noun}"
    if spent.HasField("rounds_left"):
        budget = training.spec.aggregation.differential_privacy.epsilon_budget
        text += f" of a budget of {budget:g}, which allows {spent.rounds_left} more"
        if not spent.rounds_left:
            return text
    return f"{text}; {spent.next_epsilon:.4g} after the next one"


def _participants(training: Training, names: Mapping[str, str]) -> str:
    known = sorted(names[user_id] for user_id in training.participant_ids if user_id in names)
    return f"{training.num_participants}" + (
        f": {listing(known, max(0, training.num_participants - len(known)))}" if known else ""
    )


def _arrived(kind: RoundKind.ValueType, arrived: int, expected: int) -> str:
    return f"{arrived} of {expected} {'reports' if kind == ROUND_KIND_EVALUATE else 'updates'}"


def _draw(draw: CohortDraw) -> str:
    return f"{draw.num_chosen} of {draw.num_eligible} were asked, {draw.num_needed} are needed (seed {draw.seed})"


def _seen(one: RoundParticipant) -> str:
    if one.uploaded_bytes:
        return f"{one.uploaded_bytes:,} bytes uploaded"
    if one.subscribed:
        return "connected"
    seen = when(one.last_seen_time)
    return f"last seen {seen}" if seen else "never connected"
