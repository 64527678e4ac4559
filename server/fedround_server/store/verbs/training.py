"""Transactions about trainings."""

from collections.abc import Sequence
from datetime import datetime

from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import (
    CohortImpossible,
    FieldInvalid,
    LastParticipant,
    NoParticipants,
    NotActor,
    TokenInvalid,
    TrainingEnded,
    TrainingNotFound,
    TrainingNotInitial,
    TrainingRunning,
    UnknownClients,
)
from fedround_server.domain.event import TrainingStarted
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import Manifest, NewModel
from fedround_server.domain.rounds import check_model, next_kind
from fedround_server.domain.training import Training, TrainingSpec, TrainingState
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.model import get_model, lock_owned_model
from fedround_server.store.queries.participant import (
    former_participants,
    is_participant,
    list_eligible,
    participant_ids,
)
from fedround_server.store.queries.quota import check_open_trainings, check_stored_bytes
from fedround_server.store.queries.shadow import find_shadow
from fedround_server.store.queries.training import (
    find_created_training,
    find_training_of_model,
    find_visible,
    is_removed,
    load_trainings,
    lock_steered,
    lock_visible,
    page_trainings,
)
from fedround_server.store.queries.user import lock_user, unknown_clients
from fedround_server.store.queries.version import first_version, model_info
from fedround_server.store.tables.mapping import from_spec, to_manifest, to_spec
from fedround_server.store.tables.schema import ModelRow, TrainingClientsRow, TrainingRow
from fedround_server.store.transitions import end_training
from fedround_server.store.transitions.config import put_config
from fedround_server.store.transitions.open_round import open_round
from fedround_server.store.transitions.participants import enroll, leave
from fedround_server.store.transitions.privacy import open_account
from fedround_server.store.transitions.shadows import create_shadows
from fedround_server.store.transitions.training import append_event, move, state_of
from fedround_server.store.transitions.versions import begin_deltas, copy_model, insert_model


class TrainingVerbs(Verbs):
    """Transactions about trainings."""

    @verb
    def prepare(self, actor_id: str, spec: TrainingSpec, quotas: Quotas, size: int = 0) -> Training | None:
        """Checks whether `create` would succeed, before a model of a size in bytes (0 if unknown) is received.

        Returns what a create with the same request id made, if any.

        Raises:
            FedroundError: As `create`.
        """
        if (made := _created(actor_id, spec.request_id)) is not None:
            return made
        check_open_trainings(actor_id, quotas)
        check_stored_bytes(actor_id, quotas, size)
        _refuse_unknown(spec)
        if spec.model_id is not None:
            source = lock_owned_model(spec.model_id, actor_id)
            first_version(source, spec)
            _check_model(spec, source)
        return None

    @verb
    def create(
        self,
        training_id: str,
        actor_id: str,
        spec: TrainingSpec,
        model: NewModel | None,
        new_model_id: str,
        quotas: Quotas,
        now: datetime,
        shadow_ids: Sequence[str] = (),
        rounds_allowed: int | None = None,
    ) -> Training:
        """Stores a training, with its model and participants, or nothing at all.

        The budget of its privacy, if it has one, allows a number of rounds.

        The spec has a model_id unless a model was streamed; new_model_id is the id of that one, or of the copy that is
        made if the stored one is in use; shadow_ids are those of the models of its shadow aggregations.

        Raises:
            UnknownClients: Some client_ids are of no user.
            ModelNotFound: The actor owns no such model.
            Quota: The actor has too many trainings, or its files too many bytes.
            TokenInvalid: The actor was removed.
        """
        if (made := _created(actor_id, spec.request_id)) is not None:
            return made
        check_open_trainings(actor_id, quotas)
        _refuse_unknown(spec)
        model_id = (
            _stored_model(str(spec.model_id), spec, actor_id, new_model_id, now)
            if model is None
            else insert_model(new_model_id, actor_id, model, now).model_id
        )
        check_stored_bytes(actor_id, quotas)
        manifest = _check_model(spec, get_model(model_id))
        if len(spec.aggregation.changed(manifest, spec.tensors.trained(manifest))) < len(manifest):
            begin_deltas(model_id)
        create_shadows(training_id, model_id, spec, shadow_ids, now)
        if shadow_ids:
            check_stored_bytes(actor_id, quotas)
        row = TrainingRow.create(
            training_id=training_id,
            actor_id=actor_id,
            model_id=model_id,
            spec=from_spec(spec),
            state=TrainingState.INITIAL.value,
            round=0,
            model_version=0,
            num_participants=0,
            failure_missing=[],
            last_sequence=0,
            stored_bytes=0,
            paused=False,
            request_id=spec.request_id,
            create_time=now,
            update_time=now,
        )
        record("training_created", row, aggregation=row.spec["aggregation"], target_num_updates=spec.target_num_updates)
        TrainingClientsRow.create(training_id=training_id, client_ids=list(spec.client_ids))
        open_account(training_id, spec.aggregation, rounds_allowed)
        put_config(training_id, 0, spec.config or None, spec.client_config)
        enroll(row, spec.client_ids, now)
        return load_trainings([row])[0]

    @snapshot
    def get(self, training_id: str, user_id: str) -> Training:
        """Returns a training that the user steers or takes part in.

        Raises:
            TrainingNotFound: There is none.
        """
        row = find_visible(training_id, user_id)
        if row.actor_id != user_id and not is_participant(training_id, user_id):
            raise TrainingNotFound(training_id)
        return load_trainings([row], reader_id=_other_than_actor(row, user_id))[0]

    @snapshot
    def page(self, user_id: str, *, as_actor: bool, before: tuple[datetime, str] | None, limit: int) -> list[Training]:
        """Returns the trainings that a user steers (or takes part in), the newest first, without their participants."""
        return load_trainings(page_trainings(user_id, as_actor=as_actor, before=before, limit=limit), listed=True)

    @verb
    def register(self, training_id: str, actor_id: str, client_ids: Sequence[str], now: datetime) -> Training:
        """Registers clients as participants.

        Raises:
            TrainingNotFound: There is no such training for the caller.
            NotActor: The caller only takes part.
            TrainingEnded: The training is over.
            UnknownClients: Some are of no user; nothing is changed.
        """
        unknown = unknown_clients(client_ids)
        row = lock_steered(training_id, actor_id)
        if state_of(row).is_ended:
            raise TrainingEnded(f"the training {training_id} is {row.state}: register clients in a new one")
        _refuse(unknown)
        for user_id in enroll(row, client_ids, now):
            if state_of(row).is_running:
                append_event(row, _started(row), now, audience=user_id)
        return load_trainings([row])[0]

    @verb
    def remove_clients(
        self, training_id: str, caller_id: str, client_ids: Sequence[str], now: datetime
    ) -> tuple[Training, bool]:
        """Removes participants, the actor any, a participant itself; returns whether that closed the training's round.

        Those that have left already are skipped: a caller repeats the call when it got no answer.

        Raises:
            TrainingNotFound: There is no such training for the caller.
            NotActor: A participant names others.
            TrainingEnded: The training is over.
            UnknownClients: Some never took part; nothing is changed.
            LastParticipant: None would be left in a running training.
        """
        row = lock_visible(training_id, caller_id)
        if row.actor_id != caller_id and set(client_ids) != {caller_id}:
            if not is_participant(training_id, caller_id):
                raise TrainingNotFound(training_id)
            raise NotActor("a participant may remove itself only: ask the actor")
        present = set(participant_ids(training_id))
        if unknown := set(client_ids) - present - former_participants(training_id, client_ids):
            raise UnknownClients(sorted(unknown), "not participants of the training")
        leaving = set(client_ids) & present
        if leaving and state_of(row).is_ended:
            raise TrainingEnded(f"the training {training_id} is {row.state}: there is nothing to leave")
        if leaving == present and state_of(row).is_running:
            raise LastParticipant("a running training keeps one participant: remove the training (force) instead")
        closed = bool(leaving) and leave(row, sorted(leaving), now)
        return load_trainings([row], reader_id=_other_than_actor(row, caller_id))[0], closed

    @verb
    def remove(self, training_id: str, actor_id: str, *, force: bool, now: datetime) -> None:
        """Removes a training; its model stays. Does nothing if the actor has removed it before.

        Raises:
            TrainingNotFound: There is no such training for the caller.
            NotActor: The caller only takes part.
            TrainingRunning: It runs, and force is not set.
        """
        try:
            row = lock_steered(training_id, actor_id)
        except TrainingNotFound:
            # The caller repeats the call when it got no answer.
            if is_removed(training_id, actor_id):
                return
            raise
        if state_of(row).is_running and not force:
            raise TrainingRunning(f"the training {training_id} is running: set force to remove it all the same")
        end_training.remove(row, now)

    @verb
    def start(self, training_id: str, actor_id: str, request_id: str | None, now: datetime) -> Training:
        """Starts a training: its first round opens.

        Raises:
            TrainingNotFound: There is no such training for the caller.
            NotActor: The caller only takes part.
            TrainingNotInitial: It was started before, by another request.
            NoParticipants: Too few are registered.
            CohortImpossible: Too few are registered for the cohort, or too few have its labels.
        """
        row = lock_steered(training_id, actor_id)
        if request_id is not None and row.start_request_id == request_id:
            return load_trainings([row])[0]
        if state_of(row) is not TrainingState.INITIAL:
            raise TrainingNotInitial(
                f"the training {training_id} is {row.state}: only an INITIAL one can be started", state=row.state
            )
        wanted = max(1, row.spec["min_updates"])
        if row.num_participants < wanted:
            present = row.num_participants
            raise NoParticipants(
                f"the training has {present} participants and needs at least {wanted}: register clients first"
            )
        spec = to_spec(row.spec)
        if lack := spec.aggregation.lack(participant_ids(training_id), "registered participants"):
            raise NoParticipants(f"{lack}: register clients first")
        if spec.cohort is not None:
            _check_cohort(row, spec.cohort, wanted, spec.aggregation)
        row.start_request_id = request_id
        row.start_time = now
        record("training_started", row)
        move(row, TrainingState.ONGOING, now)
        append_event(row, _started(row), now)
        first = next_kind(spec, None, row.model_version)
        if first is None:
            raise RuntimeError("a new training has no first round")
        open_round(row, 0, first, now)
        return load_trainings([row])[0]


def _refuse_unknown(spec: TrainingSpec) -> None:
    """Refuses a spec that names users who do not exist: as participants, or as those that its aggregation needs."""
    _refuse(unknown_clients(spec.client_ids))
    for rule in spec.aggregation.rules:
        if unknown := unknown_clients(rule.required_users()):
            raise UnknownClients(unknown, field=f"spec.aggregation.{rule.name}")


def _refuse(unknown: list[str]) -> None:
    if unknown:
        raise UnknownClients(unknown)


def _created(actor_id: str, request_id: str | None) -> Training | None:
    """Returns the training that a request of an actor has created, if any, and locks the actor.

    It creates one training at a time: else two at once both find room in its quota.
    """
    if not lock_user(actor_id):
        # Removed since the call began.
        raise TokenInvalid
    row = None if request_id is None else find_created_training(actor_id, request_id)
    if row is None:
        return None
    if row.remove_time is not None:
        raise FieldInvalid("request_id", "the training that it created was removed: use a new one")
    return load_trainings([row])[0]


def _stored_model(model_id: str, spec: TrainingSpec, actor_id: str, copy_id: str, now: datetime) -> str:
    """Returns the model to train: the stored one, or a copy if it has versions that were made, or of an older version.

    A copy has the state of the version that the training's aggregation goes on with.
    """
    source = lock_owned_model(model_id, actor_id)
    start = first_version(source, spec)
    is_used = source.version or find_training_of_model(model_id) is not None or find_shadow(model_id) is not None
    if not is_used:
        return model_id
    slots = spec.aggregation.inherited_slots
    name, description = source.name, source.description
    return copy_model(copy_id, source, start, slots, now, name=name, description=description).model_id


def _check_model(spec: TrainingSpec, model: ModelRow) -> Manifest:
    """Returns the tensors of a model, after a check that the training can work on it."""
    if not model.is_finite and not spec.allow_non_finite_buffers:
        raise FieldInvalid(
            "spec.allow_non_finite_buffers", "must be set: the model contains NaN or Inf, as in the buffer of a mask"
        )
    manifest = to_manifest(model.manifest)
    check_model(spec, manifest)
    return manifest


def _check_cohort(training: TrainingRow, cohort: Cohort, min_updates: int, aggregation: Aggregation) -> None:
    """Checks that the participants that are registered can make up the cohorts of rounds.

    Raises:
        CohortImpossible: They cannot.
    """
    if cohort.min_available > training.num_participants:
        raise CohortImpossible(
            f"cohort.min_available is {cohort.min_available}, and {training.num_participants} participants are"
            " registered: no round would open; register more clients first",
            field="spec.cohort.min_available",
        )
    eligible = list_eligible(training.training_id, cohort.labels)
    registered = len(eligible)
    having = " have the labels of the cohort" if cohort.labels else " are registered"
    if not registered:
        raise CohortImpossible(
            f"cohort.labels: none of the {training.num_participants} participants has all of them: an admin sets them"
            " (fedround user label)",
            field="spec.cohort.labels",
        )
    if cohort.size is not None and cohort.size > registered:
        raise CohortImpossible(
            f"cohort.size is {cohort.size}, and {registered} participants{having}: register more clients first",
            field="spec.cohort.size",
        )
    if cohort.needed(registered) < min_updates:
        raise CohortImpossible(
            f"round_policy.min_updates is {min_updates}, and a round asks for {cohort.needed(registered)} updates,"
            f" since {registered} participants{having}: register more clients first",
            field="spec.round_policy.min_updates",
        )
    if lack := aggregation.lack(eligible, "participants with the labels of the cohort"):
        raise CohortImpossible(f"{lack}: register more clients first", field="spec.cohort.labels")
    if cohort.needed(registered) < aggregation.min_updates:
        raise CohortImpossible(
            f"a round asks for {cohort.needed(registered)} updates, since {registered} participants{having}, and the"
            f" aggregation needs {aggregation.min_updates}: register more clients first",
            field="spec.cohort.fraction",
        )


def _other_than_actor(training: TrainingRow, user_id: str) -> str | None:
    return None if user_id == training.actor_id else user_id


def _started(training: TrainingRow) -> TrainingStarted:
    model = model_info(training.model_id, training.model_version)
    return TrainingStarted(training.spec["target_num_updates"], model)
