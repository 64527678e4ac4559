"""Reads of what aggregations of rounds need."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState
from fedround_server.domain.errors import ReplayImpossible
from fedround_server.domain.model import ModelVersion, VersionFile
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import Computation, NewVersion
from fedround_server.domain.rounds.round import Round, RoundState
from fedround_server.domain.shadow import ShadowTask
from fedround_server.domain.update import Submission, Update
from fedround_server.store.queries.round import counted_updates
from fedround_server.store.queries.shadow_task import shadow_tasks
from fedround_server.store.queries.version import aggregation_state, base_versions, known_version, model_info
from fedround_server.store.tables.mapping import to_round, to_spec, to_update
from fedround_server.store.tables.schema import RoundRow, TrainingRow

DONE = RoundState.DONE.value


@dataclass(frozen=True, slots=True)
class AggregationTask:
    """A closed round, and all that its aggregation needs.

    Attributes:
        model: The model that the round started from.
        computation: What makes a file of the updates; None if the round makes none.
        updates: The updates that count, in canonical order; empty if these are reports.
        state: What the aggregation that made the model has left for this one.
        shadows: The shadow aggregations of the same updates.
        bases: The versions that updates were trained from, by their numbers, if these are not all the model.
    """

    round: Round
    model: VersionFile
    computation: Computation | None
    updates: tuple[Update, ...]
    state: AggregationState = NO_STATE
    shadows: tuple[ShadowTask, ...] = ()
    bases: Mapping[int, VersionFile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """A round whose version is to be made once more.

    Attributes:
        aggregation: The round, and all that its aggregation needs.
        made: The version that it has made.
    """

    aggregation: AggregationTask
    made: ModelVersion


def aggregation_task(training: TrainingRow, row: RoundRow) -> AggregationTask:
    """Returns a closed round, and all that its aggregation needs."""
    model = model_info(training.model_id, row.model_version).blob
    kind = KINDS[row.kind]
    computation = kind.computation(to_spec(training.spec), row.step)
    has_files = kind.submission is Submission.UPDATE
    updates = tuple(map(to_update, counted_updates(row.training_id, row.number))) if has_files else ()
    slots = () if computation is None else computation.aggregation.slots
    state = aggregation_state(training.model_id, row.model_version, slots)
    bases = {one.version: one.blob for one in base_versions(training.model_id, row.model_version, updates)}
    shadows = shadow_tasks(row, computation)
    return AggregationTask(to_round(row), model, computation, updates, state, shadows, bases)


def replay_task(training: TrainingRow, row: RoundRow) -> ReplayTask:
    """Returns a round that made a version, and all that it takes to make it once more.

    Raises:
        ReplayImpossible: It made no version, or files that it needs are not stored any more.
    """
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    rows = counted_updates(row.training_id, row.number) if row.state == DONE else []
    updates = tuple(map(to_update, rows)) if kind.submission is Submission.UPDATE else ()
    computation = kind.computation(spec, row.step)
    made = isinstance(kind.outcome(spec, row.number, row.step, len(updates)), NewVersion)
    if row.state != DONE or computation is None or not made:
        raise ReplayImpossible(
            "the round has made no version: there is nothing to compute once more", cause="NO_VERSION"
        )
    stages = computation.aggregation
    if isinstance(stages, Aggregation) and stages.differential_privacy is not None:
        raise ReplayImpossible(
            f"version {row.model_version + 1} has noise (differential_privacy), which is not recorded: it cannot be"
            " computed once more",
            cause="NOISE",
        )
    if not all(one.stored for one in rows):
        raise ReplayImpossible(
            f"the files of the updates that made version {row.model_version + 1} are not stored any more:"
            f" keep_update_rounds is {spec.keep_update_rounds}",
            cause="KEEP_UPDATE_ROUNDS",
        )
    base, version = (known_version(training.model_id, row.model_version + step) for step in (0, 1))
    others = base_versions(training.model_id, base.version, updates)
    for one in (base, *others):
        if not one.stored:
            raise ReplayImpossible(
                f"the files of version {one.version}, which version {row.model_version + 1} was made from, are not"
                " stored any more: keep_versions says how many are",
                cause="KEEP_VERSIONS",
            )
    bases = {one.version: one.blob for one in others}
    state = aggregation_state(training.model_id, base.version, computation.aggregation.slots)
    task = AggregationTask(to_round(row), base.blob, computation, updates, state, bases=bases)
    return ReplayTask(task, version)
