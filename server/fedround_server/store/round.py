"""Verbs about rounds: what their participants do, and how they end."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedround_server.domain.errors import (
    FieldInvalid,
    MetricsExist,
    NotActor,
    NotInCohort,
    NumExamples,
    RoundNotFound,
    RoundNotOpen,
    TrainingNotFound,
    UpdateExists,
)
from fedround_server.domain.event import ModelInfo, UpdateAccepted
from fedround_server.domain.model import BlobRef, Manifest
from fedround_server.domain.round import Round, RoundKind, RoundMember, RoundState, RoundView, UnfinishedRound
from fedround_server.domain.swag import MEAN, moments
from fedround_server.domain.training import TrainingSpec
from fedround_server.domain.update import NewUpdate, NormBound, Update, foremost, weighted_means
from fedround_server.failpoints import reached
from fedround_server.store import ledger, steps
from fedround_server.store.closing import evaluate
from fedround_server.store.database import Database, verb
from fedround_server.store.following import follow
from fedround_server.store.rows import to_manifest, to_round, to_spec, to_update
from fedround_server.store.schema import (
    CohortRow,
    DealRow,
    ModelRow,
    ParticipantRow,
    RoundRow,
    TrainingRow,
    UpdateRow,
    UserRow,
)


@dataclass(frozen=True, slots=True)
class Admission:
    """What an update must look like to be accepted; receipt is set if it was accepted before."""

    manifest: Manifest
    bound: NormBound | None
    receipt: Update | None


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
        training = steps.lock(new.training_id)
        receipt = _check(training, new, RoundKind.TRAIN)
        spec = to_spec(training.spec)
        manifest = to_manifest(ModelRow.get(ModelRow.model_id == training.model_id).manifest)
        row = RoundRow.get(RoundRow.training_id == new.training_id, RoundRow.number == new.round)
        if row.kind == RoundKind.SWAG.value:
            manifest = moments(manifest, int(spec.uncertainty.options["rank"]))
        return Admission(manifest, _bound(training, row, new.user_id, spec.max_update_norm), receipt)

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
        training = steps.lock(new.training_id)
        before = _check(training, new, kind)
        if before is not None:
            return before, False
        row = UpdateRow.create(
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
        reached("update.inserted")
        ledger.accept(training, row)
        _, arrived = steps.round_counts(new.training_id, new.round)
        expected = RoundRow.get(RoundRow.training_id == new.training_id, RoundRow.number == new.round).expected
        accepted = UpdateAccepted(update_id, new.round, new.user_id, new.num_examples, arrived, expected)
        steps.append(training, accepted, now, audience=steps.ACTOR)
        reached("update.logged")
        return to_update(row), evaluate(training, now)

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
        training = steps.try_lock(training_id)
        if training is None or (number is not None and training.round != number):
            return False
        row = steps.find_round(training_id, training.round)
        if attempt is not None and (row is None or row.attempt != attempt):
            return False
        return evaluate(training, now, due=due)

    @verb
    def find_aggregation(self, training_id: str) -> AggregationTask | None:
        """Returns the training's closed round that has no result yet."""
        training = steps.peek(training_id)
        if training is None:
            return None
        row = steps.find_round(training_id, training.round)
        if row is None or row.state != RoundState.AGGREGATING.value:
            return None
        updates = steps.counted(training_id, row.number)
        info = steps.model_info(training.model_id, row.model_version)
        return AggregationTask(
            to_round(row, len(updates)), to_spec(training.spec), info.blob, tuple(to_update(row) for row in updates)
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
        training = steps.try_lock(training_id)
        if training is None:
            return False
        updates = steps.counted(training_id, number)
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
        row = RoundRow.get(RoundRow.training_id == training_id, RoundRow.number == number)
        follow(training, row, updates, metrics, result, now)
        return True

    @verb
    def fail(self, training_id: str, number: int, epoch: int, reason: str, message: str, now: datetime) -> bool:
        """Ends a training whose round cannot be aggregated; fenced like `commit`."""
        training = steps.try_lock(training_id)
        row = None if training is None else steps.find_round(training_id, number)
        if training is None or row is None or row.state != RoundState.AGGREGATING.value or row.epoch != epoch:
            return False
        steps.fail(training, reason, message, now)
        return True

    @verb
    def dealt(self, training_id: str, number: int, user_id: str) -> tuple[ModelInfo, BlobRef]:
        """Returns the model that a user was dealt in a round, beside the one that the chain began with.

        Raises:
            TrainingNotFound: The user takes no part in such a training.
            RoundNotFound: There is no such round (yet).
            NotInCohort: The user was dealt nothing in it.
        """
        training = steps.peek(training_id)
        part = None if training is None else _part(training_id, user_id)
        if training is None or part is None or part.remove_time is not None:
            raise TrainingNotFound(training_id)
        row = steps.find_round(training_id, number)
        if row is None:
            raise RoundNotFound(f"{number} of the training {training_id}")
        deal = _deal(row, user_id)
        if deal is None:
            raise NotInCohort(f"you were dealt no model in round {number}: download the one that round_started names")
        return steps.model_info(training.model_id, row.model_version), deal

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
        training = steps.peek(training_id)
        row = None if training is None else steps.find_round(training_id, training.round)
        return None if row is None else to_round(row, steps.round_counts(training_id, row.number)[1])

    @verb
    def explain(self, training_id: str, number: int | None, actor_id: str) -> RoundView:
        """Returns a round, by default the current one, with what is known of it.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            NotActor: The caller only takes part.
            RoundNotFound: There is no such round (yet).
        """
        training = steps.lock(training_id)
        if training.actor_id != actor_id:
            if _part(training_id, actor_id) is None:
                raise TrainingNotFound(training_id)
            raise NotActor("only the actor may look into rounds: ask the actor")
        row = steps.find_round(training_id, training.round if number is None else number)
        if row is None:
            raise RoundNotFound(f"{training.round if number is None else number} of the training {training_id}")
        arrivals = {update.user_id: update.accept_time for update in steps.counted(training_id, row.number)}
        cohort: Iterable[dict[str, Any]] = (
            CohortRow.select(CohortRow.user_id, UserRow.name.alias("name"))
            .join(UserRow, on=(UserRow.user_id == CohortRow.user_id))
            .where(CohortRow.training_id == training_id, CohortRow.number == row.number, ~CohortRow.removed)
            .order_by(UserRow.name)
            .dicts()  # type: ignore[assignment]  # the stubs don't know what dicts() does
        )
        members = tuple(RoundMember(row["user_id"], row["name"], arrivals.get(row["user_id"])) for row in cohort)
        return RoundView(to_round(row, len(arrivals)), to_spec(training.spec).round_policy, members)


def _check(training: TrainingRow, new: NewUpdate, kind: RoundKind) -> Update | None:
    """Checks whether a submission fits; returns the stored one if it is the same again."""
    part = _part(new.training_id, new.user_id)
    if part is None:
        raise TrainingNotFound(new.training_id)
    before: UpdateRow | None = UpdateRow.get_or_none(
        UpdateRow.training_id == new.training_id,
        UpdateRow.number == new.round,
        UpdateRow.user_id == new.user_id,
    )
    if before is not None:
        return _same(before, new)
    row = steps.find_round(new.training_id, new.round)
    if row is None or row.state != RoundState.OPEN.value or _is_report(row.kind) != (kind is RoundKind.EVALUATE):
        raise RoundNotOpen(_why_not_open(training, row, new.round, kind), training_id=new.training_id)
    member = CohortRow.get_or_none(
        CohortRow.training_id == new.training_id, CohortRow.number == new.round, CohortRow.user_id == new.user_id
    )
    if member is None or member.removed:
        raise NotInCohort(f"you do not belong to the cohort of round {new.round}: wait for the next round_started")
    spec = to_spec(training.spec)
    if not 1 <= new.num_examples <= spec.max_num_examples:
        raise NumExamples(new.num_examples, spec.max_num_examples)
    lacking = sorted(set(spec.metric_names) - set(new.metrics)) if kind is RoundKind.EVALUATE else []
    if lacking:
        raise FieldInvalid("metrics", f"the training asks for {', '.join(lacking)} too")
    return None


def _bound(training: TrainingRow, row: RoundRow, user_id: str, limit: float) -> NormBound | None:
    """Returns how far a member's update may be from what the member started from."""
    if not limit:
        return None
    origin = _deal(row, user_id) or steps.model_info(training.model_id, row.model_version).blob
    return NormBound(limit, origin, f"{MEAN}/" if row.kind == RoundKind.SWAG.value else "")


def _deal(row: RoundRow, user_id: str) -> BlobRef | None:
    """Returns the model that a user was dealt in a round."""
    deal: DealRow | None = DealRow.get_or_none(
        DealRow.training_id == row.training_id, DealRow.number == row.number, DealRow.user_id == user_id
    )
    return None if deal is None else BlobRef(deal.sha256, deal.size_bytes)


def _same(before: UpdateRow, new: NewUpdate) -> Update:
    if (before.sha256 or "") == new.blob.sha256:
        if new.blob.sha256 or (before.metrics == dict(new.metrics) and before.num_examples == new.num_examples):
            return to_update(before)
        raise MetricsExist(f"you have reported other metrics for round {new.round}: they stand")
    raise UpdateExists(
        f"you have submitted another update for round {new.round}: it stands", update_id=before.update_id
    )


def _why_not_open(training: TrainingRow, row: RoundRow | None, number: int, kind: RoundKind) -> str:
    if row is None:
        current = steps.find_round(training.training_id, training.round)
        now = "the training is not started" if current is None else f"the current round is {training.round}"
        return f"round {number} is not open: {now}"
    if row.state == RoundState.OPEN.value:
        verb_ = "SubmitMetrics" if _is_report(row.kind) else "SubmitUpdate"
        return f"round {number} is of kind {row.kind}: use {verb_}"
    return f"round {number} is {row.state}: follow the subscription for the next one"


def _part(training_id: str, user_id: str) -> ParticipantRow | None:
    """Returns a user's part in a training, also one that it has left."""
    part: ParticipantRow | None = ParticipantRow.get_or_none(
        ParticipantRow.training_id == training_id, ParticipantRow.user_id == user_id
    )
    return part


def _is_report(kind: str) -> bool:
    return kind == RoundKind.EVALUATE.value
