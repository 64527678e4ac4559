"""Verbs about rounds: what their participants do, and how they end."""

from dataclasses import dataclass
from datetime import datetime

from fedround_server.domain.errors import (
    NotActor,
    NotInCohort,
    RoundNotFound,
    TrainingNotFound,
)
from fedround_server.domain.event import ModelInfo, UpdateAccepted
from fedround_server.domain.model import BlobRef
from fedround_server.domain.round import Round, RoundKind, RoundState, RoundView, UnfinishedRound
from fedround_server.domain.training import TrainingSpec
from fedround_server.domain.update import NewUpdate, Update, foremost, weighted_means
from fedround_server.failpoints import reached
from fedround_server.store.db.rows import insert, save
from fedround_server.store.db.run import Database, verb
from fedround_server.store.queries import submission
from fedround_server.store.queries.model import model_info
from fedround_server.store.queries.round import counted_updates, find_assignment, find_round, get_round
from fedround_server.store.queries.round_status import view
from fedround_server.store.queries.submission import Admission
from fedround_server.store.queries.training import (
    find_training,
    find_visible,
    is_participant,
    lock_training,
    lock_visible,
)
from fedround_server.store.tables.mapping import to_round, to_spec, to_update
from fedround_server.store.tables.schema import (
    ACTOR,
    RoundRow,
    TrainingRow,
    UpdateRow,
)
from fedround_server.store.transitions import contributions, end_training
from fedround_server.store.transitions.close_round import evaluate
from fedround_server.store.transitions.commit_round import follow
from fedround_server.store.transitions.training import append_event


@dataclass(frozen=True, slots=True)
class AggregationTask:
    """A closed round, and all that its aggregation needs; updates in canonical order."""

    round: Round
    spec: TrainingSpec
    model: BlobRef
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class RoundVerbs:
    """What the store does with rounds."""

    database: Database

    @verb
    def admit(self, new: NewUpdate) -> Admission:
        """Tells whether an update would be accepted now, before its file is taken in.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            RoundNotOpen: The round does not take updates.
            NotInCohort: The user does not belong to the round.
            UpdateExists: The user submitted another update.
            NumExamples: More than the training's cap.
        """
        return submission.admit(lock_visible(new.training_id, new.user_id), new)

    @verb
    def submit(self, update_id: str, new: NewUpdate, kind: RoundKind, now: datetime) -> tuple[Update, bool]:
        """Accepts an update (or, in an evaluation round, a report), once.

        Returns:
            The update, and whether it closed the round: then the caller has the aggregation started.

        Raises:
            FieldInvalid: A report lacks one of the training's metrics.
            MetricsExist: The user has sent another report.
            FedroundError: As `admit`.
        """
        training = lock_visible(new.training_id, new.user_id)
        current = submission.check(training, new, kind)
        if isinstance(current, Update):
            return current, False
        row = UpdateRow(
            update_id=update_id,
            training_id=new.training_id,
            number=new.round,
            user_id=new.user_id,
            sha256=new.blob.sha256 or None,
            size_bytes=new.blob.size_bytes,
            num_examples=new.num_examples,
            metrics=dict(new.metrics),
            accept_time=now,
        )
        insert(row)
        reached("update.inserted")
        contributions.accept(training, row)
        training.stored_bytes += new.blob.size_bytes
        # The lock is held since the round was read.
        current.arrived += 1
        save(current)
        accepted = UpdateAccepted(
            update_id, new.round, new.user_id, new.num_examples, current.arrived, current.expected
        )
        append_event(training, accepted, now, audience=ACTOR)
        reached("update.logged")
        return to_update(row), evaluate(training, current, now)

    @verb
    def judge(
        self, training_id: str, number: int | None, *, due: bool, now: datetime, attempt: int | None = None
    ) -> bool:
        """Evaluates the close policy of an open round.

        Args:
            training_id: The training.
            number: The round, if the cause is one round's own (its deadline); nothing happens to another one.
            due: Whether the round's deadline has passed.
            now: The time to write.
            attempt: The try of that round, likewise.

        Returns:
            Whether this closed the round.
        """
        training = lock_training(training_id)
        if training is None or (number is not None and training.round != number):
            return False
        row = find_round(training_id, training.round)
        if attempt is not None and (row is None or row.attempt != attempt):
            return False
        return evaluate(training, row, now, due=due)

    @verb
    def find_aggregation(self, training_id: str) -> AggregationTask | None:
        """Returns the training's closed round that has no result yet."""
        training = find_training(training_id)
        if training is None:
            return None
        row = find_round(training_id, training.round)
        if row is None or row.state != RoundState.AGGREGATING.value:
            return None
        updates = counted_updates(training_id, row.number)
        info = model_info(training.model_id, row.model_version)
        return AggregationTask(
            to_round(row), to_spec(training.spec), info.blob, tuple(to_update(row) for row in updates)
        )

    @verb
    def commit(self, training_id: str, number: int, epoch: int, result: BlobRef | None, now: datetime) -> bool:
        """Commits a round's result, and what follows: the next round, or the end.

        Args:
            training_id: The training.
            number: The round.
            epoch: The epoch that the aggregation was started under: one that was overtaken does not commit (fencing).
            result: The new model, or of a SWAG round the posterior; None for a round that makes no file.
            now: The time to write.

        Returns:
            Whether this was the commit.
        """
        training = lock_training(training_id)
        if training is None:
            return False
        updates = counted_updates(training_id, number)
        means = weighted_means([(update.metrics, update.num_examples) for update in updates])
        metrics = foremost(means, training.spec["metric_names"])
        changed = (
            RoundRow.update(
                state=RoundState.DONE.value,
                done_time=now,
                metrics=metrics or None,
                num_examples=sum(update.num_examples for update in updates),
            )
            .where(
                RoundRow.training_id == training_id,
                RoundRow.number == number,
                RoundRow.state == RoundState.AGGREGATING.value,
                RoundRow.epoch == epoch,
            )
            .execute()
        )
        if not changed:
            return False
        row = get_round(training_id, number)
        follow(training, row, updates, metrics, result, now)
        return True

    @verb
    def fail(self, training_id: str, number: int, epoch: int, reason: str, message: str, now: datetime) -> bool:
        """Ends a training whose round cannot be aggregated; fenced like `commit`."""
        training = lock_training(training_id)
        row = None if training is None else find_round(training_id, number)
        if training is None or row is None or row.state != RoundState.AGGREGATING.value or row.epoch != epoch:
            return False
        end_training.fail(training, reason, message, now)
        return True

    @verb
    def dealt(self, training_id: str, number: int, user_id: str) -> tuple[ModelInfo, BlobRef]:
        """Returns the model that a user was dealt in a round, beside the one that the chain began with.

        Raises:
            TrainingNotFound: The user takes no part in such a training.
            RoundNotFound: There is no such round (yet).
            NotInCohort: The user was dealt nothing in it.
        """
        training = find_visible(training_id, user_id)
        if not is_participant(training_id, user_id):
            raise TrainingNotFound(training_id)
        row = find_round(training_id, number)
        if row is None:
            raise RoundNotFound(f"{number} of the training {training_id}")
        deal = find_assignment(row, user_id)
        if deal is None:
            raise NotInCohort(f"you were dealt no model in round {number}: download the one that round_started names")
        return model_info(training.model_id, row.model_version), deal

    @verb
    def unfinished(self) -> list[UnfinishedRound]:
        """Returns the rounds of running trainings that are open or have no result yet, by a single query."""
        rows = (
            RoundRow.select(RoundRow.training_id, RoundRow.number, RoundRow.state, RoundRow.attempt, RoundRow.deadline)
            .join(
                TrainingRow,
                on=((TrainingRow.training_id == RoundRow.training_id) & (TrainingRow.round == RoundRow.number)),
            )
            .where(
                TrainingRow.remove_time.is_null(),
                RoundRow.state.in_([state.value for state in RoundState if not state.is_over]),
            )
            .order_by(RoundRow.open_time)
        )
        return [
            UnfinishedRound(row.training_id, row.number, RoundState(row.state), row.attempt, row.deadline)
            for row in rows
        ]

    @verb
    def current(self, training_id: str) -> Round | None:
        """Returns the training's current round."""
        training = find_training(training_id)
        row = None if training is None else find_round(training_id, training.round)
        return None if row is None else to_round(row)

    @verb
    def explain(self, training_id: str, number: int | None, actor_id: str) -> RoundView:
        """Returns a round, by default the current one, with what is known of it.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            NotActor: The caller only takes part.
            RoundNotFound: There is no such round (yet).
        """
        training = find_visible(training_id, actor_id)
        if training.actor_id != actor_id:
            raise NotActor("only the actor may look into rounds: ask the actor")
        row = find_round(training_id, training.round if number is None else number)
        if row is None:
            raise RoundNotFound(f"{training.round if number is None else number} of the training {training_id}")
        return view(training, row)
