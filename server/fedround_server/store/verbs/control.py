"""Transactions by which actors control their trainings."""

from collections.abc import Callable, Mapping
from datetime import datetime

from fedround_server.domain.config import Changes, check, check_size, merge
from fedround_server.domain.errors import (
    FieldInvalid,
    TrainingNotPaused,
    TrainingNotRunning,
    TrainingPaused,
    UnknownClients,
)
from fedround_server.domain.event import ConfigUpdated, StopRequested, TrainingResumed
from fedround_server.domain.event import TrainingPaused as Paused
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Stop, Training
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.run import Verbs, verb
from fedround_server.store.queries.config import find_client_config, find_config
from fedround_server.store.queries.control import find_control_request
from fedround_server.store.queries.participant import participant_ids
from fedround_server.store.queries.round import get_round, next_number
from fedround_server.store.queries.training import load_trainings, lock_steered
from fedround_server.store.tables.control_schema import ControlRequestRow
from fedround_server.store.tables.schema import ACTOR, TrainingRow
from fedround_server.store.transitions.config import put_config
from fedround_server.store.transitions.end_training import abandon, complete
from fedround_server.store.transitions.next_round import go_on
from fedround_server.store.transitions.training import append_event, state_of


class ControlVerbs(Verbs):
    """Transactions by which actors control their trainings. A request that was carried out is not carried out again."""

    @verb
    def stop(self, training_id: str, actor_id: str, when: Stop, request_id: str | None, now: datetime) -> Training:
        """Ends a training with the versions that it has: at once, or when the result of its round is committed.

        A round that is being aggregated is committed in either case.

        Raises:
            TrainingNotFound: There is no such training for the caller.
            NotActor: The caller only takes part.
            TrainingNotRunning: It is not started, or has ended.
            FieldInvalid: The request id was used for another change.
        """

        def change(row: TrainingRow) -> None:
            _check_running(row, "stopped")
            if row.stop != Stop.NOW.value:
                row.stop = when.value
            record("stop_requested", row, when=when.value)
            current = get_round(training_id, row.round)
            is_open = current.state == RoundState.OPEN.value
            if current.state == RoundState.AGGREGATING.value or (is_open and when is Stop.AFTER_ROUND):
                append_event(row, StopRequested(), now)
            else:
                abandon(row)
                complete(row, now)

        return _once(training_id, actor_id, "stop", request_id, change)

    @verb
    def pause(self, training_id: str, actor_id: str, request_id: str | None, now: datetime) -> Training:
        """Has no further round opened.

        Raises:
            TrainingPaused: It is paused already.
            FedroundError: As `stop`.
        """

        def change(row: TrainingRow) -> None:
            _check_running(row, "paused")
            if row.paused:
                raise TrainingPaused(f"the training {training_id} is paused already: resume it to have rounds opened")
            row.paused = True
            record("training_paused", row)
            append_event(row, Paused(), now)

        return _once(training_id, actor_id, "pause", request_id, change)

    @verb
    def resume(self, training_id: str, actor_id: str, request_id: str | None, now: datetime) -> Training:
        """Ends a pause; opens the next round, unless one is under way.

        Raises:
            TrainingNotPaused: It is not paused.
            FedroundError: As `stop`.
        """

        def change(row: TrainingRow) -> None:
            _check_running(row, "resumed")
            if not row.paused:
                raise TrainingNotPaused(f"the training {training_id} is not paused: its rounds open by themselves")
            row.paused = False
            record("training_resumed", row)
            append_event(row, TrainingResumed(), now)
            current = get_round(training_id, row.round)
            if RoundState(current.state).is_over:
                go_on(row, current, now)

        return _once(training_id, actor_id, "resume", request_id, change)

    @verb
    def update_config(
        self,
        training_id: str,
        actor_id: str,
        changes: Changes,
        client_changes: Mapping[str, Changes],
        request_id: str | None,
        now: datetime,
    ) -> Training:
        """Changes the configuration from the next round on.

        Raises:
            UnknownClients: It changes the values of a user who takes no part.
            TrainingNotRunning: The training has ended.
            FieldInvalid: A value is out of range, there are too many, or the request id was used for another change.
            FedroundError: As `stop`.
        """

        def change(row: TrainingRow) -> None:
            if state_of(row).is_ended:
                raise _not_running(row, "changed")
            if unknown := set(client_changes) - set(participant_ids(training_id)):
                raise UnknownClients(sorted(unknown), "not participants of the training", field="client_config")
            from_round = next_number(row)
            last = row.spec["target_num_updates"]
            config = merge(find_config(training_id, from_round), changes)
            check("config", config, last)
            everyone = find_client_config(training_id, from_round)
            changed = {
                user_id: merge(everyone.get(user_id, {}), own_changes)
                for user_id, own_changes in client_changes.items()
            }
            for user_id, own in changed.items():
                check(f'client_config["{user_id}"].values', own, last)
            check_size("config", config, {**everyone, **changed})
            put_config(training_id, from_round, config if changes else None, changed)
            record("config_updated", row, subject=from_round, names=sorted(changes), clients=len(changed))
            append_event(row, ConfigUpdated(from_round), now, audience=ACTOR)

        return _once(training_id, actor_id, "update_config", request_id, change)


def _once(
    training_id: str, actor_id: str, action: str, request_id: str | None, change: Callable[[TrainingRow], None]
) -> Training:
    """Makes a change of a training that the actor steers, unless the request was carried out before."""
    row = lock_steered(training_id, actor_id)
    if not _is_repeated(row, action, request_id):
        change(row)
    return load_trainings([row])[0]


def _is_repeated(row: TrainingRow, action: str, request_id: str | None) -> bool:
    """Returns whether a request was carried out before; otherwise remembers it, for the case that it is."""
    if request_id is None:
        return False
    before = find_control_request(row.training_id, request_id)
    if before is not None and before.action != action:
        raise FieldInvalid("request_id", f"was used before, to {before.action.replace('_', ' ')}: use a new one")
    if before is None:
        ControlRequestRow.create(training_id=row.training_id, request_id=request_id, action=action)
    return before is not None


def _check_running(row: TrainingRow, what: str) -> None:
    if not state_of(row).is_running:
        raise _not_running(row, what)


def _not_running(row: TrainingRow, what: str) -> TrainingNotRunning:
    return TrainingNotRunning(f"the training {row.training_id} is {row.state}: it cannot be {what}", state=row.state)
