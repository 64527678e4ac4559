"""Reads events that start rounds."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc

from fedround.v1.event_pb2 import ROUND_KIND_TRAIN, RoundStarted
from fedround_client.config import plain
from fedround_client.errors import UnsupportedRound
from fedround_client.participation import Round
from fedround_client.progress import kind_name
from fedround_client.round_number import round_text
from fedround_client.transport import Transport

_READ_AGAIN = frozenset({"scaffold", "fed_dyn", "q_fed_avg"})
"""Rules that look at the model of a round again once an update was made."""


def read_round(training_id: str, started: RoundStarted) -> Round:
    """Returns a round as the functions of a participant get it.

    Raises:
        UnsupportedRound: Its deadline is not a valid time.
    """
    transport = Transport.of(started)
    return Round(
        training_id=training_id,
        number=started.round,
        kind=kind_name(started),
        model_version=started.model.version,
        deadline=_deadline(training_id, started) if started.HasField("deadline") else None,
        algorithm=started.aggregation.WhichOneof("algorithm") or "fed_avg",
        fed_prox_mu=started.aggregation.fed_prox.mu,
        metric_names=tuple(started.metric_names),
        local_rounds=started.local_rounds,
        assigned=started.assigned,
        swag_rank=started.swag.rank,
        attempt=max(1, started.attempt),
        update_precision=transport.default.precision,
        stochastic_rounding=bool(transport.default.stochastic_rounding),
        tensor_precisions=transport.rules,
        trainable=tuple(started.trainable),
        private=tuple(started.private),
        config=plain(started.config),
    )


def needs_model_again(started: RoundStarted) -> bool:
    """Returns whether a participant probably reads the file of the round's model more than once.

    It does where an update is sent as differences from the model, where rounds of another kind have the same model,
    where updates have a part of its tensors, and where a rule looks at it after training.
    """
    rules = {one.WhichOneof("algorithm") for one in (started.aggregation, *started.aggregation.shadow)}
    is_partial = bool(started.model.delta_sha256 or started.trainable or started.private)
    is_plain = started.kind == ROUND_KIND_TRAIN and not (started.metric_names or is_partial or started.attempt > 1)
    return not (is_plain and Transport.of(started).is_full and rules.isdisjoint(_READ_AGAIN))


def _deadline(training_id: str, started: RoundStarted) -> datetime:
    try:
        return started.deadline.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise unsupported(training_id, started.round, f"has a deadline that is not a valid time: {error}") from error


def unsupported(training_id: str, number: int, problem: str) -> UnsupportedRound:
    """Returns that this SDK, or the participant's functions, cannot run a round."""
    message = f"{round_text(number).capitalize()} of training {training_id} {problem}"
    return UnsupportedRound(grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_ROUND", message, {"training_id": training_id})
