"""Where updates of a training with buffering count; final if it is read while the training is locked."""

from peewee import ModelSelect

from fedround_server.domain.aggregation import Buffering
from fedround_server.domain.errors import FieldInvalid, NotInCohort, RoundNotOpen, UpdateStale
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.update import NewUpdate, Submission
from fedround_server.store.db.compiled import compiled
from fedround_server.store.queries.participant import is_participant
from fedround_server.store.queries.round import find_round, find_submission, get_round, is_member
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import RoundRow, TrainingRow, UpdateRow

BETWEEN = (RoundState.AGGREGATING.value, RoundState.PENDING.value)
"""The states of a current round after which another one takes updates, or it does itself."""


class NextRoundAwaited(Exception):
    """The current round takes no updates any more, and the next one not yet: the caller tries again when it does."""


@compiled
def _from_version(training_id: str, user_id: str, version: int) -> "ModelSelect[UpdateRow]":
    return UpdateRow.select().where(
        UpdateRow.training_id == training_id, UpdateRow.user_id == user_id, UpdateRow.base_version == version
    )


def buffering_of(training: TrainingRow) -> Buffering | None:
    """Returns the buffering of a training's updates, without reading the whole spec of one that has none."""
    return to_spec(training.spec).aggregation.buffering if "buffering" in training.spec["aggregation"] else None


def base_version(new: NewUpdate) -> int:
    """Returns the version that an update was trained from: by default the one that the round it names started from."""
    return new.base_version if new.base_version is not None else get_round(new.training_id, new.round).model_version


def locate(training: TrainingRow, new: NewUpdate) -> tuple[RoundRow | None, UpdateRow | None]:
    """Returns the round that an update is for, and one of its participant that it is to be compared with, if any.

    That is one from the same version, or else one in the same round, if it has not been superseded. The round is the
    current one, unless the update names one that takes none, or is compared with an update of an earlier one.
    """
    named = find_round(training.training_id, new.round)
    if named is None or KINDS[named.kind].submission is not Submission.UPDATE:
        return named, None
    for before in _from_version.all(training.training_id, new.user_id, base_version(new)):
        row = get_round(training.training_id, before.number)
        if row.state != RoundState.ABANDONED.value and is_member(row.training_id, row.number, new.user_id):
            return row, before
    current = get_round(training.training_id, training.round)
    takes_updates = KINDS[current.kind].submission is Submission.UPDATE
    if not takes_updates or current.state not in (RoundState.OPEN.value, RoundState.ABANDONED.value):
        # The update is for a later round, or for none.
        return current, None
    return current, find_submission(current.training_id, current.number, new.user_id)


def current_round(training: TrainingRow, named: RoundRow | None) -> RoundRow | None:
    """Returns the open round that a report of a failure is for; the named one if that is not for updates.

    Raises:
        NextRoundAwaited: The next round is not open yet.
    """
    if named is None or KINDS[named.kind].submission is not Submission.UPDATE:
        return named
    current = get_round(training.training_id, training.round)
    if goes_on(training, current):
        raise NextRoundAwaited
    return current


def goes_on(training: TrainingRow, current: RoundRow) -> bool:
    """Returns whether another round takes updates once the current one is closed, or the current one once it opens."""
    return current.state in BETWEEN and not training.paused and training.stop is None


def check_place(training: TrainingRow, row: RoundRow, new: NewUpdate, buffering: Buffering) -> None:
    """Checks that an update may be accepted in the current round, or in the next one if that is to be awaited.

    Raises:
        RoundNotOpen: No round takes updates, and none will before something else happens.
        NotInCohort: The user does not take part.
        FieldInvalid: There is no such version yet.
        UpdateStale: Too many versions were made since the one that it started from.
    """
    is_open = row.state == RoundState.OPEN.value
    if KINDS[row.kind].submission is not Submission.UPDATE or not (is_open or goes_on(training, row)):
        raise RoundNotOpen(_why_not_open(training), training_id=training.training_id)
    takes_part = (
        is_member(row.training_id, row.number, new.user_id) if is_open else is_participant(row.training_id, new.user_id)
    )
    if not takes_part:
        raise NotInCohort("you do not belong to the open round: wait for the next round_started")
    base = base_version(new)
    if base > training.model_version:
        raise FieldInvalid("spec.base_version", f"is {base}, and the latest version is {training.model_version}")
    version = row.model_version + (row.state == RoundState.AGGREGATING.value)
    if version - base > buffering.max_staleness:
        raise UpdateStale(base, version, buffering.max_staleness)


def _why_not_open(training: TrainingRow) -> str:
    if training.paused:
        return "no round is open: the training is paused; keep the update, and send it again at the next round_started"
    return "no round takes updates any more: the training ends, or has ended; follow the subscription"
