"""Transactions about rounds: how they close, what they make, and how they stand."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from fedround_server.domain.aggregation import NO_STATE, AggregationState, UpdateFacts
from fedround_server.domain.errors import (
    NotActor,
    NotInCohort,
    RoundNotFound,
    RoundNotOpen,
    TrainingNotFound,
)
from fedround_server.domain.event import ModelInfo
from fedround_server.domain.failure import ABSENT
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.domain.policy import patience
from fedround_server.domain.report import foremost, weighted_means
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import (
    FIRST_PAGE,
    AwaitedMember,
    MemberPage,
    PendingRound,
    Round,
    RoundState,
    RoundView,
    UnfinishedRound,
)
from fedround_server.domain.shadow import ShadowResult
from fedround_server.domain.training import Stop, TrainingFailure
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.aggregation_task import AggregationTask, ReplayTask, aggregation_task, replay_task
from fedround_server.store.queries.control_variate import find_control_variate
from fedround_server.store.queries.failure import failed_users
from fedround_server.store.queries.participant import failed_participants, is_participant, participant_ids
from fedround_server.store.queries.replica import is_kept_here, keeps
from fedround_server.store.queries.round import (
    counted_updates,
    find_assignment,
    find_round,
    get_round,
    is_member,
    list_unfinished_rounds,
    missing_members,
    page_rounds,
)
from fedround_server.store.queries.round_status import summaries, view
from fedround_server.store.queries.training import find_training, find_visible, lock_training
from fedround_server.store.queries.version import model_info
from fedround_server.store.tables.mapping import from_facts, to_round, to_spec
from fedround_server.store.tables.report_schema import RoundReportRow
from fedround_server.store.tables.schema import RoundRow, TrainingRow
from fedround_server.store.transitions import end_training
from fedround_server.store.transitions.close_round import evaluate, reopen
from fedround_server.store.transitions.commit_round import commit_result
from fedround_server.store.transitions.failures import add_failure
from fedround_server.store.transitions.open_round import open_pending


class RoundVerbs(Verbs):
    """Transactions about rounds."""

    @verb
    def judge(
        self,
        training_id: str,
        number: int | None,
        *,
        due: bool,
        now: datetime,
        attempt: int | None = None,
        waited_until: datetime | None = None,
        connected: Collection[str] | None = None,
    ) -> bool:
        """Evaluates the close policy of the current round, if it is open; returns whether this closed the round.

        If the cause belongs to a round or to an attempt at it, such as its deadline (`due`), no other one is touched.
        A wait is over if it ends at `waited_until` or before, also if the wall clock (`now`) was set back since.
        `connected` users may join a round that is repeated; None if it is not known who is connected.
        """
        training = lock_training(training_id)
        if training is None or (number is not None and training.round != number):
            return False
        row = find_round(training_id, training.round)
        if attempt is not None and (row is None or row.attempt != attempt):
            return False
        return evaluate(training, row, now, due=due, waited_until=waited_until, connected=connected)

    @verb
    def pending(self, training_id: str, number: int) -> PendingRound | None:
        """Returns what a pending round waits for; None if it is not pending (any more)."""
        training = find_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or row.state != RoundState.PENDING.value:
            return None
        wanted = KINDS[row.kind].wanted(to_spec(training.spec), row.step)
        return PendingRound(wanted, tuple(participant_ids(training_id)))

    @verb
    def open(self, training_id: str, number: int, connected: Collection[str], now: datetime) -> bool:
        """Opens a pending round, unless the training is paused; returns whether it is pending no longer.

        Args:
            training_id: The training.
            number: The round.
            connected: The participants that are connected, as many as the round waits for.
            now: The present time.
        """
        training = lock_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or row.state != RoundState.PENDING.value:
            return True
        if training.paused:
            return False
        return open_pending(training, row, connected, now)

    @verb
    def awaited(self, training_id: str, number: int) -> list[AwaitedMember]:
        """Returns the members that a round, if it is open, waits for only while they have a connection."""
        training = find_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or row.state != RoundState.OPEN.value:
            return []
        policy = KINDS[row.kind].policy(to_spec(training.spec))
        before = failed_participants(training_id)
        if policy.absent_after is None and not before:
            return []
        limits = {failed: patience(policy, failed_before=failed) for failed in (False, True)}
        return [
            AwaitedMember(member.user_id, limit, None if member.user_id in before else member.ask_time)
            for member in missing_members(row)
            if (limit := limits[member.user_id in before]) is not None
        ]

    @verb
    def exclude_absent(self, training_id: str, number: int, absent: Mapping[str, str], now: datetime) -> bool:
        """Records that members of an open round are absent; returns whether that closed the round.

        Members that have submitted, failed or left meanwhile are not changed.

        Args:
            training_id: The training.
            number: The round.
            absent: A message for the actor by user.
            now: The present time.
        """
        training = lock_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or training.round != number or row.state != RoundState.OPEN.value:
            return False
        missing = {member.user_id for member in missing_members(row)}
        waited_for = missing - failed_users(training_id, number)
        for user_id in sorted(waited_for & absent.keys()):
            add_failure(training, row, user_id, ABSENT, absent[user_id], now)
        return evaluate(training, row, now)

    @verb
    def find_aggregation(self, training_id: str) -> AggregationTask | None:
        """Returns the training's closed round that has no result yet, if it is this server's to aggregate."""
        training = find_training(training_id)
        if training is None:
            return None
        row = find_round(training_id, training.round)
        if row is None or row.state != RoundState.AGGREGATING.value or not keeps(row):
            return None
        return aggregation_task(training, row)

    @snapshot
    def find_replay(self, training_id: str, number: int, actor_id: str) -> ReplayTask:
        """Returns a round that made a version, and all that it takes to make it once more.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            NotActor: The caller is a participant.
            RoundNotFound: There is no such round (yet).
            ReplayImpossible: It made no version, or files that it needs are not stored any more.
        """
        training, row = _round_of_actor(training_id, number, actor_id, "replay")
        return replay_task(training, row)

    @verb
    def commit(
        self,
        training_id: str,
        number: int,
        epoch: int,
        result: VersionFile | None,
        now: datetime,
        state: AggregationState = NO_STATE,
        report: Mapping[str, UpdateFacts] = MappingProxyType({}),
        shadows: Sequence[ShadowResult] = (),
    ) -> bool:
        """Commits a round's result, and what follows: the next round, or the end; returns whether this was the commit.

        An aggregation that was started in an earlier epoch, or by a replica that is not the keeper or whose lease has
        ended, does not commit (fencing). The result is the file that was
        made of the updates, if the round makes one, the state what its aggregation leaves for the next one, the report
        what it has found out about the updates, by user, and the shadows what the shadow aggregations have made.
        """
        training = lock_training(training_id)
        if training is None:
            return False
        updates = counted_updates(training_id, number)
        reports = [(update.metrics, update.num_examples) for update in updates]
        metrics = foremost(weighted_means(reports), training.spec["metric_names"])
        changed = (
            RoundRow.update(
                state=RoundState.DONE.value,
                done_time=now,
                # An empty mean: there is something to show, but nothing of it has a mean.
                metrics=metrics if any(reported for reported, _ in reports) else None,
                num_examples=sum(update.num_examples for update in updates),
            )
            .where(
                RoundRow.training_id == training_id,
                RoundRow.number == number,
                RoundRow.state == RoundState.AGGREGATING.value,
                RoundRow.epoch == epoch,
                is_kept_here(),
            )
            .execute()
        )
        if not changed:
            return False
        row = get_round(training_id, number)
        if report:
            RoundReportRow.create(training_id=training_id, number=number, facts=from_facts(report))
        commit_result(training, row, updates, metrics, result, now, state, shadows)
        return True

    @verb
    def reopen(
        self,
        training_id: str,
        number: int,
        epoch: int,
        lost: Collection[str],
        now: datetime,
        *,
        connected: Collection[str] | None = None,
    ) -> bool:
        """Opens a closed round again without updates whose files are damaged, given by their ids; fenced like `commit`.

        A training that is to stop at once does not wait for them: it ends without the round. `connected` users may join
        the round; None if it is not known who is connected.

        Returns:
            Whether it was opened. Without those updates it may have been closed at once: then it is to be aggregated.
        """
        training = lock_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or not _is_at(row, epoch):
            return False
        if training.stop == Stop.NOW.value:
            end_training.abandon(training)
            end_training.complete(training, now)
            return True
        updates = [update for update in counted_updates(training_id, number) if update.update_id in lost]
        reopen(training, row, updates, now, connected)
        return True

    @verb
    def fail(self, training_id: str, number: int, epoch: int, reason: str, message: str, now: datetime) -> bool:
        """Ends a training whose round cannot be aggregated; fenced like `commit`."""
        training = lock_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or not _is_at(row, epoch):
            return False
        end_training.fail(training, TrainingFailure(reason, message), now)
        return True

    @verb
    def assigned(self, training_id: str, number: int, user_id: str) -> tuple[ModelInfo, BlobRef]:
        """Returns the model that the chain began with, and the one that was assigned to a user in a round.

        Raises:
            TrainingNotFound: The user takes no part in such a training.
            RoundNotFound: There is no such round (yet).
            RoundNotOpen: The round is over, and the training does not keep all updates.
            NotInCohort: No model was assigned to the user in it.
        """
        training, row = _round_of_participant(training_id, number, user_id)
        if RoundState(row.state).is_over and training.spec.get("keep_update_rounds") is not None:
            raise RoundNotOpen("the round is over, and the files of its assigned models are not kept")
        found = find_assignment(row, user_id)
        if found is None:
            raise NotInCohort("no model was assigned to you in this round: download the one that round_started names")
        return model_info(training.model_id, row.model_version), found

    @verb
    def control_variate(self, training_id: str, number: int, user_id: str) -> tuple[ModelInfo, BlobRef | None]:
        """Returns the model that a round started from, and the control variate of its rule; None if there is none yet.

        Raises:
            TrainingNotFound: The user takes no part in such a training.
            RoundNotFound: There is no such round (yet).
            NotInCohort: The user is no member of its cohort.
            FieldInvalid: The rule of the training has none.
        """
        training, row = _round_of_participant(training_id, number, user_id)
        if not is_member(training_id, number, user_id):
            raise NotInCohort("you are no member of the round's cohort: wait for a round_started event of your own")
        return model_info(training.model_id, row.model_version), find_control_variate(training, row)

    @verb
    def unfinished(self) -> list[UnfinishedRound]:
        """Returns the rounds of running trainings that are open or have no result yet, with a single query."""
        return list_unfinished_rounds()

    @verb
    def current(self, training_id: str) -> Round | None:
        """Returns the training's current round."""
        training = find_training(training_id)
        row = None if training is None else find_round(training_id, training.round)
        return None if row is None else to_round(row)

    @snapshot
    def explain(self, training_id: str, number: int | None, actor_id: str, page: MemberPage = FIRST_PAGE) -> RoundView:
        """Returns a round, by default the current one, with a page of its members, and with rejected submissions.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            NotActor: The caller is a participant.
            RoundNotFound: There is no such round (yet).
        """
        return view(*_round_of_actor(training_id, number, actor_id, "look into"), page)

    @snapshot
    def summarize(self, training_id: str, number: int | None, actor_id: str) -> RoundView:
        """Returns a round like `explain`, without what is known of single members.

        Raises:
            FedroundError: As `explain`.
        """
        training, row = _round_of_actor(training_id, number, actor_id, "look into")
        return summaries(training, [row])[0]

    @snapshot
    def page(self, training_id: str, actor_id: str, before: int | None, limit: int) -> list[RoundView]:
        """Returns the rounds of a training below a number, the latest first, like `summarize`.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            NotActor: The caller is a participant.
        """
        training = _training_of_actor(training_id, actor_id, "look into")
        return summaries(training, page_rounds(training, before, limit))


def _is_at(row: RoundRow, epoch: int) -> bool:
    """Returns whether a round is closed, in an epoch, and this server's to aggregate."""
    return row.state == RoundState.AGGREGATING.value and row.epoch == epoch and keeps(row)


def _round_of_participant(training_id: str, number: int, user_id: str) -> tuple[TrainingRow, RoundRow]:
    """Returns a training and one of its rounds, for a participant."""
    training = find_visible(training_id, user_id)
    if not is_participant(training_id, user_id):
        raise TrainingNotFound(training_id)
    row = find_round(training_id, number)
    if row is None:
        raise RoundNotFound(number, training_id)
    return training, row


def _round_of_actor(training_id: str, number: int | None, actor_id: str, purpose: str) -> tuple[TrainingRow, RoundRow]:
    """Returns a training and one of its rounds, by default the current one, for its actor."""
    training = _training_of_actor(training_id, actor_id, purpose)
    wanted = training.round if number is None else number
    row = find_round(training_id, wanted)
    if row is None:
        raise RoundNotFound(wanted, training_id)
    return training, row


def _training_of_actor(training_id: str, actor_id: str, purpose: str) -> TrainingRow:
    training = find_visible(training_id, actor_id)
    if training.actor_id != actor_id:
        raise NotActor(f"only the actor may {purpose} rounds: ask the actor")
    return training
