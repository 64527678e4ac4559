"""Transactions about what participants submit: updates, reports, and what was rejected."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from fedround_server.domain.errors import FedroundError, TrainingNotFound
from fedround_server.domain.event import UpdateAccepted
from fedround_server.domain.policy import OnFailure
from fedround_server.domain.report import NewReport, Report
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.update import NewUpdate, Update
from fedround_server.failpoints import reached
from fedround_server.store.db.audit_trail import collecting
from fedround_server.store.db.group_commit import Change
from fedround_server.store.db.rows import insert, new_row, save
from fedround_server.store.db.run import Verbs, joined, snapshot, verb
from fedround_server.store.queries import submission
from fedround_server.store.queries.buffered import NextRoundAwaited, buffering_of
from fedround_server.store.queries.participant import took_part
from fedround_server.store.queries.round import find_newcomers, find_round
from fedround_server.store.queries.submission import Admission
from fedround_server.store.queries.training import find_locked, find_visible, lock_visible
from fedround_server.store.tables.mapping import from_blob, to_report, to_spec, to_update
from fedround_server.store.tables.schema import ACTOR, EventRow, RoundRow, TrainingRow, UpdateRow
from fedround_server.store.transitions import contributions, end_training
from fedround_server.store.transitions.close_round import evaluate, participants_failed, stays_open
from fedround_server.store.transitions.failures import add_failure, withdraw_failure
from fedround_server.store.transitions.rejected_updates import count_rejected
from fedround_server.store.transitions.training import next_event

New: TypeAlias = NewUpdate | NewReport
Submitted: TypeAlias = tuple[str, New, datetime]
"""The arguments of `submit_update` and `submit_report`."""


def _round_of(_: str, new: New, _now: datetime) -> tuple[str, int]:
    return new.training_id, new.round


def _submit_updates(
    submitted: Sequence[tuple[str, NewUpdate, datetime]], more: Callable[[], Sequence[tuple[str, NewUpdate, datetime]]]
) -> Sequence[Change]:
    return _submit_together(submitted, more, to_update)


def _submit_reports(
    submitted: Sequence[tuple[str, NewReport, datetime]], more: Callable[[], Sequence[tuple[str, NewReport, datetime]]]
) -> Sequence[Change]:
    return _submit_together(submitted, more, to_report)


class SubmissionVerbs(Verbs):
    """Transactions about submissions."""

    @snapshot
    def admit(self, new: NewUpdate) -> Admission | Update:
        """Returns what an update must be, before its file is received; or the same update, if it was accepted before.

        The training is not locked, so this waits for no submission: `submit_update` checks everything again.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            RoundNotOpen: The round does not take updates.
            NotInCohort: The user does not belong to the round.
            UpdateExists: The user has submitted another update.
            UpdateSuperseded: The same update was accepted before, and will not count.
            NumExamples: More than the training's limit.
            FieldInvalid: It does not say what the rule of the aggregation needs to know, or its base version is wrong.
            UpdateStale: Too many versions were made since the one that it started from (buffering).
        """
        return submission.admit(find_visible(new.training_id, new.user_id), new)

    @snapshot
    def check_part(self, training_id: str, user_id: str) -> None:
        """Checks that a user takes, or took, part in a training, and waits for nothing that happens in it.

        Raises:
            TrainingNotFound: It does not.
        """
        if not took_part(find_visible(training_id, user_id), user_id):
            raise TrainingNotFound(training_id)

    @joined(_submit_updates, _round_of)
    def submit_update(self, update_id: str, new: NewUpdate, now: datetime) -> tuple[Update, bool]:
        """Accepts an update, once; returns whether it closed the round, or has it wait: the caller starts what follows.

        Raises:
            NextRoundAwaited: The next round is not open yet (buffering).
            FedroundError: As `admit`.
        """
        row, closed = _submit(new, update_id, now)
        return to_update(row), closed

    @joined(_submit_reports, _round_of)
    def submit_report(self, report_id: str, new: NewReport, now: datetime) -> tuple[Report, bool]:
        """Accepts a report, once; returns whether it closed the round, or has it wait: the caller starts what follows.

        Raises:
            FieldInvalid: The report lacks one of the training's metrics.
            MetricsExist: The user has sent another report.
            FedroundError: As `admit`.
        """
        row, closed = _submit(new, report_id, now)
        return to_report(row), closed

    @verb
    def report_failure(
        self, training_id: str, number: int, user_id: str, reason: str, message: str, now: datetime
    ) -> bool:
        """Records that a member of an open round does not deliver, once; returns whether that closed the round.

        Then the caller starts the aggregation. A report takes the place of an absence that the server noticed.

        Raises:
            TrainingNotFound: The user takes no part in such a training.
            RoundNotOpen: The round is over, or not open yet.
            NotInCohort: The user does not belong to the round.
            UpdateExists, MetricsExist: The user has submitted in the round.
            NextRoundAwaited: The next round is not open yet (buffering).
        """
        training = lock_visible(training_id, user_id)
        row = submission.check_failure(training, number, user_id)
        if row is None:
            return False
        if row.failed:
            withdraw_failure(training, row, user_id)
        add_failure(training, row, user_id, reason, message, now)
        if KINDS[row.kind].policy(to_spec(training.spec)).on_failure is OnFailure.FAIL:
            end_training.fail(training, participants_failed(row), now)
            return False
        return evaluate(training, row, now)

    @verb
    def record_rejected(
        self, training_id: str, number: int, user_id: str, reason: str, message: str, now: datetime
    ) -> None:
        """Counts a rejected submission, if the user takes, or took, part in the training.

        A rejection that names an unknown round counts for the current one, so a user has at most one row for each round
        and reason. With buffering, all do.
        """
        try:
            training = find_visible(training_id, user_id)
        except TrainingNotFound:
            return
        if not took_part(training, user_id):
            return
        current = find_round(training_id, training.round)
        row = current if buffering_of(training) is not None else find_round(training_id, number) or current
        if row is None:
            return
        count_rejected(training_id, row.number, user_id, reason, message, now)


def _submit(new: New, update_id: str, now: datetime) -> tuple[UpdateRow, bool]:
    """Inserts a submission, unless it was accepted before, counts it in its round, and applies the close policy."""
    training = lock_visible(new.training_id, new.user_id)
    current = submission.check(training, new)
    if isinstance(current, UpdateRow):
        return current, False
    if current.state != RoundState.OPEN.value:
        raise NextRoundAwaited
    if current.failed:
        withdraw_failure(training, current, new.user_id)
    row, event = _count(training, current, (update_id, new, now))
    _write(training, current, [row], [event])
    return row, _closes(training, current, now)


def _submit_together(
    first: Sequence[Submitted], more: Callable[[], Sequence[Submitted]], read: Callable[[UpdateRow], Any]
) -> Sequence[Change]:
    """Accepts the first ones of some submissions to a round, of members that have neither submitted nor failed in it.

    Those that come while the training is locked by another transaction are behind the first ones.

    The first one that is anything else is left to `_submit`, with those behind it; and so are all behind one that may
    close the round.
    """
    _, new, _ = first[0]
    training = find_locked(new.training_id, new.user_id)
    current = None if training is None else find_round(new.training_id, new.round)
    if training is None or current is None or not submission.takes_newcomers(training, current, new.submission):
        return []
    submitted = [*first, *more()]
    newcomers = find_newcomers(new.training_id, new.round, [other.user_id for _, other, _ in submitted])
    rows, events, changes = [], [], []
    stays = True
    for one in submitted:
        _, new, now = one
        if not stays or new.user_id not in newcomers or not _is_valid(training, current, new):
            break
        newcomers.remove(new.user_id)
        with collecting() as records:
            row, event = _count(training, current, one)
        rows.append(row)
        events.append(event)
        changes.append((row, records))
        stays = stays_open(training, current, now)
    if not rows:
        return []
    _write(training, current, rows, events)
    with collecting() as closing:
        closed = _closes(training, current, rows[-1].accept_time)
    found = [((read(row), False), records) for row, records in changes[:-1]]
    row, records = changes[-1]
    return [*found, ((read(row), closed), [*records, *closing])]


def _is_valid(training: TrainingRow, current: RoundRow, new: New) -> bool:
    try:
        submission.check_newcomer(training, current, new)
    except FedroundError:
        return False
    return True


def _count(training: TrainingRow, current: RoundRow, submitted: Submitted) -> tuple[UpdateRow, EventRow]:
    """Counts a submission in its round; returns its row and its event, which `_write` inserts."""
    update_id, new, now = submitted
    blob = new.blob if isinstance(new, NewUpdate) else None
    row = new_row(
        UpdateRow,
        update_id=update_id,
        training_id=new.training_id,
        number=current.number,
        user_id=new.user_id,
        **from_blob(blob),
        num_examples=new.num_examples,
        metrics=dict(new.metrics),
        accept_time=now,
        stored=blob is not None,
        **submission.kept_inputs(training, current, new),
    )
    contributions.accept(training, row)
    training.stored_bytes += row.size_bytes
    # The training has been locked since the round was read.
    current.arrived += 1
    accepted = UpdateAccepted(
        update_id, current.number, new.user_id, new.num_examples, current.arrived, current.expected
    )
    return row, next_event(training, accepted, now, audience=ACTOR)


def _write(training: TrainingRow, current: RoundRow, updates: Sequence[UpdateRow], events: Sequence[EventRow]) -> None:
    insert(*updates)
    for _ in updates:
        reached("update.inserted")
    save(current)
    save(training)
    insert(*events)
    for _ in events:
        reached("update.logged")


def _closes(training: TrainingRow, current: RoundRow, now: datetime) -> bool:
    """Applies the close policy; returns whether the round is closed, or has begun to wait, or to wait for longer."""
    wait_end = current.wait_end
    return evaluate(training, current, now) or current.wait_end != wait_end
