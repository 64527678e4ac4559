"""Whether a submission may be accepted; final if it is read while its training is locked."""

import json
from dataclasses import dataclass
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached
from peewee import ModelSelect

from fedround_server.domain.errors import (
    FieldInvalid,
    MetricsExist,
    NotInCohort,
    NumExamples,
    RoundNotOpen,
    TrainingNotFound,
    UpdateExists,
    UpdateSuperseded,
)
from fedround_server.domain.model import Manifest, VersionFile
from fedround_server.domain.partial_sum import MAX_NUM_EXAMPLES as MAX_SUM_EXAMPLES
from fedround_server.domain.report import NewReport, same_metrics
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import ExpectedTensors
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingSpec
from fedround_server.domain.update import NewUpdate, NormBound, Submission, Update, inputs_of, is_number
from fedround_server.store.db.compiled import compiled_values
from fedround_server.store.queries.buffered import base_version, buffering_of, check_place, current_round, locate
from fedround_server.store.queries.failure import has_reported_failure
from fedround_server.store.queries.participant import took_part
from fedround_server.store.queries.round import find_assignment, find_round, find_submission, is_member
from fedround_server.store.queries.version import model_info
from fedround_server.store.tables.mapping import to_manifest, to_spec, to_update
from fedround_server.store.tables.schema import ModelRow, RoundRow, TrainingRow, UpdateRow

CLOSED = (RoundState.AGGREGATING.value, RoundState.DONE.value)
"""The states of a round that was closed by its updates."""

INPUTS = ("local_steps", "initial_loss")
"""The columns of what rules need to know; null where they do not."""

CACHED_TENSORS = 20_000
"""Tensors of all manifests that are cached; each takes some 500 bytes."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What an update must be to be accepted.

    Attributes:
        round: The round in which it is to count, as far as that is known.
        tensors: Its tensors.
        bound: The bound of its distance; None without a limit.
        model: The round's model, whose NaN and Inf it may have; None if it may have none.
        is_shared: Whether all updates that name this round must be the same.
    """

    round: int
    tensors: ExpectedTensors
    bound: NormBound | None
    model: VersionFile | None
    is_shared: bool


def admit(training: TrainingRow, new: NewUpdate) -> Admission | Update:
    """Returns what an update must be to be accepted now, or the same update if it was accepted before."""
    row = check(training, new)
    if isinstance(row, UpdateRow):
        return to_update(row)
    spec = to_spec(training.spec)
    [(text,)] = _manifest.all(training.model_id)
    expected = KINDS[row.kind].tensors(spec, _read_manifest(text))
    bound: NormBound | None = None
    model: VersionFile | None = None
    if spec.max_update_norm or spec.allow_non_finite_buffers:
        base = row.model_version if spec.aggregation.buffering is None else base_version(new)
        start = model_info(training.model_id, base).blob
        if spec.max_update_norm:
            bound = NormBound(spec.max_update_norm, find_assignment(row, new.user_id) or start, expected.prefix)
        if spec.allow_non_finite_buffers:
            model = start
    is_shared = bound is None and model is None and spec.aggregation.buffering is None
    return Admission(row.number, expected, bound, model, is_shared)


def check(training: TrainingRow, new: NewUpdate | NewReport) -> RoundRow | UpdateRow:
    """Returns the round of a submission that may be accepted, or the same submission if it was accepted before.

    The round is open, unless the submission has to wait for it, or for the next one (buffering).

    Raises:
        FedroundError: It is rejected, as `SubmissionVerbs.submit_update` and `submit_report` list.
    """
    if not took_part(training, new.user_id):
        raise TrainingNotFound(new.training_id)
    buffering = buffering_of(training) if isinstance(new, NewUpdate) else None
    if isinstance(new, NewUpdate) and buffering is not None:
        row, before = locate(training, new)
    else:
        row = find_round(new.training_id, new.round)
        before = find_submission(new.training_id, new.round, new.user_id)
    if row is not None and before is not None and _stands(row, before, new):
        return before
    if isinstance(new, NewUpdate) and buffering is not None and row is not None:
        check_place(training, row, new, buffering)
    elif row is None or row.state != RoundState.OPEN.value or KINDS[row.kind].submission is not new.submission:
        raise RoundNotOpen(_why_not_open(training, row, new.round), **_metadata(row, new))
    else:
        _check_member(row, new.user_id)
        _check_base(row, new)
    _check_content(training, row, new)
    return row


def takes_newcomers(training: TrainingRow, row: RoundRow, submission: Submission) -> bool:
    """Returns whether an open round takes submissions of a kind, and none of them counts in another round."""
    return (
        row.state == RoundState.OPEN.value
        and KINDS[row.kind].submission is submission
        and buffering_of(training) is None
    )


def check_newcomer(training: TrainingRow, row: RoundRow, new: NewUpdate | NewReport) -> None:
    """Checks what a newcomer submits to a round that takes it, as `check` does.

    Raises:
        FedroundError: It is rejected.
    """
    _check_base(row, new)
    _check_content(training, row, new)


def _check_base(row: RoundRow, new: NewUpdate | NewReport) -> None:
    if isinstance(new, NewUpdate) and new.base_version not in (None, row.model_version):
        raise FieldInvalid(
            "spec.base_version", f"is {new.base_version}, and the round started from version {row.model_version}"
        )


def _check_content(training: TrainingRow, row: RoundRow, new: NewUpdate | NewReport) -> None:
    spec = to_spec(training.spec)
    most = _most_examples(spec, row, new)
    if not 0 <= new.num_examples <= most:
        raise NumExamples(new.num_examples, most)
    numbers = {name for name, value in new.metrics.items() if is_number(value)}
    lacking = sorted(set(KINDS[row.kind].required_metrics(spec)) - numbers)
    if lacking:
        raise FieldInvalid("metrics", f"the training asks for {', '.join(lacking)} too, as numbers")
    kept_inputs(training, row, new)


def _most_examples(spec: TrainingSpec, row: RoundRow, new: NewUpdate | NewReport) -> int:
    """Returns how many examples a submission may have.

    Raises:
        FieldInvalid: It is a partial sum, and the training takes none.
    """
    if not isinstance(new, NewUpdate) or not new.is_sum:
        return spec.max_num_examples
    if not spec.allow_relays:
        raise FieldInvalid(
            "spec.num_updates",
            f"is {new.num_updates}, for a partial sum, and the training takes none: its actor has to create it with"
            " allow_relays",
        )
    # An equal share of what a round may have together, so that no participant makes it fail by what it claims.
    members = max(row.members, row.population or 0, 1)
    return min(new.num_updates * spec.max_num_examples, MAX_SUM_EXAMPLES // members)


def kept_inputs(training: TrainingRow, row: RoundRow, new: NewUpdate | NewReport) -> dict[str, Any]:
    """Returns what is kept of a submission since the rule of its round needs it, by the names of the columns.

    Raises:
        FieldInvalid: It lacks something that the rule needs.
    """
    if not isinstance(new, NewUpdate):
        return {}
    stages = KINDS[row.kind].stages(to_spec(training.spec), row.step)
    rules = () if stages is None else stages.rules
    inputs = {name: value for rule in rules for name, value in inputs_of(new, rule).items()}
    return inputs if buffering_of(training) is None else {**inputs, "base_version": base_version(new)}


def check_failure(training: TrainingRow, number: int, user_id: str) -> RoundRow | None:
    """Returns the open round of a failure that may be recorded; None if the user has reported it before.

    Raises:
        FedroundError: It is rejected, as `SubmissionVerbs.report_failure` lists.
    """
    if not took_part(training, user_id):
        raise TrainingNotFound(training.training_id)
    row = find_round(training.training_id, number)
    is_buffered = buffering_of(training) is not None
    # With buffering, it may have been recorded in a later round.
    last = training.round if is_buffered else number
    if row is not None and (row.failed or is_buffered) and has_reported_failure(row.training_id, number, last, user_id):
        return None
    if is_buffered:
        row = current_round(training, row)
        number = number if row is None else row.number
    if row is None or row.state != RoundState.OPEN.value:
        raise RoundNotOpen(_why_not_open(training, row, number), training_id=training.training_id)
    _check_member(row, user_id)
    submitted = find_submission(training.training_id, number, user_id)
    if submitted is not None:
        if submitted.sha256 is None:
            raise MetricsExist("you have reported metrics for this round: they stand, and no failure is recorded")
        raise UpdateExists("you have submitted an update for this round: it stands, and no failure is recorded")
    return row


def _check_member(row: RoundRow, user_id: str) -> None:
    if not is_member(row.training_id, row.number, user_id):
        raise NotInCohort("you do not belong to the cohort of this round: wait for the next round_started")


def _stands(row: RoundRow, before: UpdateRow, new: NewUpdate | NewReport) -> bool:
    """Returns whether a submission of the round was accepted, counts, and is the same as a new one.

    False means that a removal superseded it and that the new one differs: that is judged like a first one.

    Raises:
        UpdateExists: It is another update, and counts.
        MetricsExist: It is another report, and counts.
        UpdateSuperseded: It is the same, and will not count.
    """
    changed = [name for name, value in _content(new).items() if getattr(before, name) != value]
    if isinstance(new, NewUpdate):
        kept = {name: value for name in INPUTS if (value := getattr(before, name)) is not None}
        changed += [name for name, value in kept.items() if getattr(new, name) != value]
        if before.base_version not in (None, new.base_version) and base_version(new) != before.base_version:
            changed.append("base_version")
    changed += [] if same_metrics(before.metrics, new.metrics) else ["metrics"]
    abandoned = row.state == RoundState.ABANDONED.value
    if abandoned or not is_member(row.training_id, row.number, before.user_id):
        if changed:
            return False
        cause = "the round was abandoned" if abandoned else "you were removed from the round"
        raise UpdateSuperseded(
            f"your {new.submission.noun} for this round was superseded, and will not count: {cause}; discard"
            " it, and wait for the next round_started",
            update_id=before.update_id,
        )
    if not changed:
        return True
    different = f"(different: {', '.join(changed)})"
    if isinstance(new, NewReport) and before.sha256 is None:
        raise MetricsExist(f"you have reported other metrics for this round {different}: they stand")
    base = before.base_version
    where = "for this round" if base is None else f"from version {base}, which counts in round {before.number}"
    raise UpdateExists(f"you have submitted another update {where} {different}: it stands", update_id=before.update_id)


def _content(new: NewUpdate | NewReport) -> dict[str, object]:
    """Returns what makes a submission the same as another one, beside its metrics, by the names of the columns."""
    sha256 = new.blob.sha256 if isinstance(new, NewUpdate) else None
    return {"sha256": sha256, "num_examples": new.num_examples}


def _why_not_open(training: TrainingRow, row: RoundRow | None, number: int) -> str:
    if row is None:
        current = find_round(training.training_id, training.round)
        now = (
            "the training is not started"
            if current is None
            else f"the current round is {training.round}, counted from 0"
        )
        return f"the round is not open: {now}"
    kind = KINDS[row.kind]
    if row.state == RoundState.OPEN.value:
        return f"the round is of kind {kind.public_name}: use {kind.submission.method}"
    if row.state == RoundState.PENDING.value:
        return "the round is not open yet: it waits for participants"
    if row.state in CLOSED:
        enough = f"closed with {row.arrived} of {row.members} {kind.submission.noun}s, which were enough"
        return f"the round is {row.state}: it {enough}; follow the subscription for the next one"
    return f"the round is {row.state}: follow the subscription for the next one"


def _metadata(row: RoundRow | None, new: NewUpdate | NewReport) -> dict[str, str]:
    """Returns what programs want to know of a round that is not open: how it was closed without a member's work."""
    metadata = {"training_id": new.training_id}
    if row is not None and row.state in CLOSED and is_member(row.training_id, row.number, new.user_id):
        metadata |= {"num_updates": str(row.arrived), "num_participants": str(row.members)}
    return metadata


@compiled_values
def _manifest(model_id: str) -> "ModelSelect[ModelRow]":
    return ModelRow.select(ModelRow.manifest).where(ModelRow.model_id == model_id)


@cached(LRUCache(CACHED_TENSORS, getsizeof=len), lock=Lock())
def _read_manifest(text: str) -> Manifest:
    return to_manifest(json.loads(text))
