"""Reads of rounds, of their cohorts, and of what was submitted in them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from peewee import Case, Expression, Field, ModelSelect, fn

from fedround_server.domain.aggregation import UpdateFacts
from fedround_server.domain.forecast import HISTORY
from fedround_server.domain.model import BlobRef
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import Sequel
from fedround_server.domain.rounds.round import RoundState, UnfinishedRound
from fedround_server.domain.update import Submission
from fedround_server.store.db.compiled import compiled, compiled_values, in_array
from fedround_server.store.queries.failure import OF_MEMBER
from fedround_server.store.tables.failure_schema import ParticipantFailureRow
from fedround_server.store.tables.mapping import to_blob, to_facts, to_spec
from fedround_server.store.tables.report_schema import RoundReportRow
from fedround_server.store.tables.schema import (
    AssignmentRow,
    CohortRow,
    RoundRow,
    TrainingRow,
    UpdateRow,
)

SUBMITTED = (
    (CohortRow.training_id == UpdateRow.training_id)
    & (CohortRow.number == UpdateRow.number)
    & (CohortRow.user_id == UpdateRow.user_id)
)
"""Joins the members of cohorts with what they submitted."""


@compiled
def _round(training_id: str, number: int) -> "ModelSelect[RoundRow]":
    return RoundRow.select().where(RoundRow.training_id == training_id, RoundRow.number == number)


@compiled
def _member(training_id: str, number: int, user_id: str) -> "ModelSelect[CohortRow]":
    return CohortRow.select().where(
        CohortRow.training_id == training_id, CohortRow.number == number, CohortRow.user_id == user_id
    )


@compiled
def _update(training_id: str, number: int, user_id: str) -> "ModelSelect[UpdateRow]":
    return UpdateRow.select().where(
        UpdateRow.training_id == training_id, UpdateRow.number == number, UpdateRow.user_id == user_id
    )


@compiled
def _assignment(training_id: str, number: int, user_id: str) -> "ModelSelect[AssignmentRow]":
    return AssignmentRow.select().where(
        AssignmentRow.training_id == training_id, AssignmentRow.number == number, AssignmentRow.user_id == user_id
    )


def get_round(training_id: str, number: int) -> RoundRow:
    """Returns a round that is known to exist."""
    return _round.one(training_id, number)


def find_round(training_id: str, number: int) -> RoundRow | None:
    """Returns a round."""
    return _round.first(training_id, number)


def page_rounds(training: TrainingRow, before: int | None, limit: int) -> list[RoundRow]:
    """Returns the rounds of a training below a number, the latest first."""
    below = training.round + 1 if before is None else before
    rows = RoundRow.select().where(RoundRow.training_id == training.training_id, RoundRow.number < below)
    return list(rows.order_by(RoundRow.number.desc()).limit(limit))


def next_number(training: TrainingRow) -> int:
    """Returns the number of the first round of a training that is not open yet."""
    current = find_round(training.training_id, training.round)
    is_open = current is not None and current.state != RoundState.PENDING.value
    return training.round + 1 if is_open else training.round


def is_member(training_id: str, number: int, user_id: str) -> bool:
    """Returns whether a user belongs to a round's cohort, and was not removed from it."""
    member = _member.first(training_id, number, user_id)
    return member is not None and not member.removed


def find_submission(training_id: str, number: int, user_id: str) -> UpdateRow | None:
    """Returns the update or report that a user has submitted in a round."""
    return _update.first(training_id, number, user_id)


def find_newcomers(training_id: str, number: int, user_ids: Sequence[str]) -> set[str]:
    """Returns those of some users that belong to a round's cohort, and have neither submitted nor failed in it."""
    return {user_id for (user_id,) in _newcomers.all(training_id, number, user_ids)}


@compiled_values
def _newcomers(training_id: str, number: int, user_ids: Sequence[str]) -> "ModelSelect[CohortRow]":
    return CohortRow.select(CohortRow.user_id).where(
        CohortRow.training_id == training_id,
        CohortRow.number == number,
        in_array(CohortRow.user_id, user_ids),
        ~CohortRow.removed,
        ~fn.EXISTS(UpdateRow.select(UpdateRow.update_id).where(SUBMITTED)),
        ~fn.EXISTS(ParticipantFailureRow.select(ParticipantFailureRow.reason).where(OF_MEMBER)),
    )


def find_assignment(row: RoundRow, user_id: str) -> BlobRef | None:
    """Returns the model that was assigned to a user in a round."""
    found = _assignment.first(row.training_id, row.number, user_id)
    return None if found is None else to_blob(found)


def assigned_users(training_id: str, number: int) -> list[str]:
    """Returns the ids of the users to whom models are assigned in a round, in canonical order."""
    rows = AssignmentRow.select(AssignmentRow.user_id).where(
        AssignmentRow.training_id == training_id, AssignmentRow.number == number
    )
    return sorted(row.user_id for row in rows)


def counted_updates(training_id: str, number: int) -> list[UpdateRow]:
    """Returns the submissions of a round that count, in canonical order: those of members that were not removed."""
    return sorted(_counted.all(training_id, number), key=lambda row: row.user_id)


def lack(training: TrainingRow, row: RoundRow) -> str | None:
    """Returns what the updates of a round lack for its aggregation; None if nothing, also if none of them has weight.

    Updates without weight do not count; if there are no others, the model stays as it is.
    """
    stages = KINDS[row.kind].stages(to_spec(training.spec), row.step)
    if stages is None or not stages.is_demanding:
        return None
    counted = [update.user_id for update in counted_updates(row.training_id, row.number) if update.num_examples]
    return stages.lack(counted) if counted else None


def arrival_times(training_id: str, number: int) -> dict[str, datetime]:
    """Returns by user when the submissions of a round that count were accepted, without reading their metrics."""
    rows = counted(training_id, number, UpdateRow.user_id, UpdateRow.accept_time)
    return {row.user_id: row.accept_time for row in rows}


def update_facts(training_id: str, number: int) -> dict[str, UpdateFacts]:
    """Returns what the aggregation of a round has found out about the updates that counted, by user."""
    row = RoundReportRow.get_or_none(RoundReportRow.training_id == training_id, RoundReportRow.number == number)
    return {} if row is None else to_facts(row.facts)


def counted(training_id: str, number: int, *columns: Field) -> "ModelSelect[UpdateRow]":
    """Selects the submissions of a round that count, in any order."""
    return (
        UpdateRow.select(*columns)
        .join(CohortRow, on=SUBMITTED)
        .where(UpdateRow.training_id == training_id, UpdateRow.number == number, ~CohortRow.removed)
    )


@compiled
def _counted(training_id: str, number: int) -> "ModelSelect[UpdateRow]":
    return counted(training_id, number)


def version_rounds(training_id: str) -> tuple[int, ...]:
    """Returns the numbers of the rounds that are done and whose kind makes versions, in order."""
    makers = [kind.name for kind in KINDS.values() if kind.sequel is Sequel.NEXT_VERSION]
    rows = RoundRow.select(RoundRow.number).where(
        RoundRow.training_id == training_id, RoundRow.state == RoundState.DONE.value, RoundRow.kind.in_(makers)
    )
    return tuple(sorted(row.number for row in rows))


def last_round_with_updates(row: RoundRow, place: int) -> int | None:
    """Returns the number of the last round up to one that is done and had updates, or of the one at a place before."""
    having = [kind.name for kind in KINDS.values() if kind.submission is Submission.UPDATE]
    done = RoundRow.select(RoundRow.number).where(
        RoundRow.training_id == row.training_id,
        RoundRow.number <= row.number,
        RoundRow.kind.in_(having),
        RoundRow.state == RoundState.DONE.value,
    )
    found = done.order_by(RoundRow.number.desc()).offset(place).first()
    return None if found is None else int(found.number)


def stored_updates(training_id: str, *conditions: Expression) -> "ModelSelect[UpdateRow]":
    """Selects the updates of a training whose files are stored, without their metrics."""
    return UpdateRow.select(UpdateRow.update_id, UpdateRow.number, UpdateRow.size_bytes).where(
        UpdateRow.training_id == training_id, UpdateRow.stored, *conditions
    )


def round_times(row: RoundRow) -> list[timedelta]:
    """Returns how long the latest rounds of the kind before a round took, from their opening to their result."""
    rows = (
        RoundRow.select(RoundRow.open_time, RoundRow.done_time)
        .where(
            RoundRow.training_id == row.training_id,
            RoundRow.kind == row.kind,
            RoundRow.number < row.number,
            RoundRow.done_time.is_null(False),
        )
        .order_by(RoundRow.number.desc())
        .limit(HISTORY)
    )
    return [old.done_time - old.open_time for old in rows]


def missing_members(row: RoundRow) -> list[CohortRow]:
    """Returns the present members of a round's cohort that have submitted nothing, by id."""
    present = CohortRow.select().where(
        CohortRow.training_id == row.training_id, CohortRow.number == row.number, ~CohortRow.removed
    )
    submitted = arrival_times(row.training_id, row.number)
    return sorted((member for member in present if member.user_id not in submitted), key=lambda one: one.user_id)


def all_members(row: RoundRow) -> set[str]:
    """Returns the ids of all members of a round's cohort, including removed ones."""
    rows = CohortRow.select(CohortRow.user_id).where(
        CohortRow.training_id == row.training_id, CohortRow.number == row.number
    )
    return {member.user_id for member in rows}


def count_members(row: RoundRow) -> tuple[int, int, int]:
    """Returns the number of the present members of a round's cohort, of those that have submitted, and that failed."""
    counts: tuple[int, int, int] = (
        CohortRow.select(
            fn.COUNT(CohortRow.user_id),
            fn.COALESCE(fn.SUM(Case(None, [(UpdateRow.update_id.is_null(), 0)], 1)), 0),
            fn.COALESCE(fn.SUM(Case(None, [(ParticipantFailureRow.reason.is_null(), 0)], 1)), 0),
        )
        .left_outer_join(UpdateRow, on=SUBMITTED)
        .left_outer_join(ParticipantFailureRow, on=OF_MEMBER)
        .where(CohortRow.training_id == row.training_id, CohortRow.number == row.number, ~CohortRow.removed)
        .tuples()
        .get()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    return int(counts[0]), int(counts[1]), int(counts[2])


def list_unfinished_rounds() -> list[UnfinishedRound]:
    """Returns the rounds of running trainings that are open or have no result yet, with a single query."""
    current = (TrainingRow.training_id == RoundRow.training_id) & (TrainingRow.round == RoundRow.number)
    rows = (
        RoundRow.select(
            RoundRow.training_id,
            RoundRow.number,
            RoundRow.state,
            RoundRow.attempt,
            RoundRow.deadline,
            RoundRow.wait_end,
            RoundRow.keeper,
        )
        .join(TrainingRow, on=current)
        .where(
            TrainingRow.remove_time.is_null(),
            RoundRow.state.in_([state.value for state in RoundState if not state.is_over]),
        )
        .order_by(RoundRow.open_time)
    )
    return [
        UnfinishedRound(
            row.training_id, row.number, RoundState(row.state), row.attempt, row.deadline, row.wait_end, row.keeper
        )
        for row in rows
    ]
