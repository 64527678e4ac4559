"""Transactions about counterfactuals: what it takes to compute one, and its model."""

from datetime import datetime

from fedround_server.aggregators import from_aggregation
from fedround_server.domain.aggregation import DaisyChaining
from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.counterfactual import Counterfactual, ReplayableTraining
from fedround_server.domain.errors import NotActor, ReplayImpossible, TokenInvalid
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import Model
from fedround_server.store.db.audit_trail import append
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.model import uploaded_model
from fedround_server.store.queries.quota import check_stored_bytes
from fedround_server.store.queries.round import counted, version_rounds
from fedround_server.store.queries.training import find_visible
from fedround_server.store.queries.user import lock_user
from fedround_server.store.queries.version import aggregation_state, known_version
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import TrainingRow, UpdateRow
from fedround_server.store.transitions.versions import add_branch_version, branch_facts, insert_branch


class CounterfactualVerbs(Verbs):
    """Transactions about counterfactuals."""

    @verb
    def prepare(self, actor_id: str, request_id: str | None, quotas: Quotas) -> Model | None:
        """Returns the model that a request has made before, if any; checks whether `create` may make one.

        Raises:
            FieldInvalid: It was removed.
            Quota: The actor's files have too many bytes.
        """
        made = uploaded_model(actor_id, request_id, "request_id")
        if made is None:
            check_stored_bytes(actor_id, quotas)
        return made

    @snapshot
    def find(self, training_id: str, actor_id: str) -> ReplayableTraining:
        """Returns the rounds of a training that made versions, and what the first of them started from.

        Raises:
            TrainingNotFound: The user has no part in such a training.
            NotActor: The caller is a participant.
            ReplayImpossible: It has no versions, is one of daisy chaining, or its first version is not stored.
        """
        training = _training_of_actor(training_id, actor_id)
        stages = to_spec(training.spec).aggregation
        if isinstance(stages.rule, DaisyChaining):
            raise ReplayImpossible(
                "in daisy chaining, the local models have been with several participants: none of them can be left out",
                cause="DAISY_CHAINING",
            )
        rounds = version_rounds(training_id)
        start = known_version(training.model_id, 0)
        if not rounds:
            raise ReplayImpossible("the training has made no version yet", cause="NO_VERSION")
        if not start.stored:
            raise ReplayImpossible(
                "the files of version 0 are not stored any more: keep_versions says how many are", cause="KEEP_VERSIONS"
            )
        users = {update.user_id for number in rounds for update in counted(training_id, number, UpdateRow.user_id)}
        state = aggregation_state(training.model_id, 0, stages.slots)
        return ReplayableTraining(rounds, frozenset(users), start.blob, state)

    @verb
    def create(self, model_id: str, actor_id: str, branch: Counterfactual, quotas: Quotas, now: datetime) -> Model:
        """Stores a side branch: a model with all its versions, unless its request has made one.

        Raises:
            TokenInvalid: The actor was removed.
            TrainingNotFound: The training was removed.
            ReplayImpossible: The version that it begins with was dropped meanwhile.
            Quota: The actor's files have too many bytes.
        """
        if not lock_user(actor_id):
            raise TokenInvalid
        if (made := uploaded_model(actor_id, branch.request_id, "request_id")) is not None:
            return made
        training = _training_of_actor(branch.training_id, actor_id)
        if not known_version(training.model_id, 0).stored:
            raise ReplayImpossible("the files of version 0 were dropped meanwhile", cause="KEEP_VERSIONS")
        stages = to_spec(training.spec).aggregation
        description = f"a counterfactual of the training {branch.training_id}"
        model = insert_branch(
            model_id,
            training.model_id,
            stages.slots,
            now,
            name=branch.name,
            description=description,
            upload_id=branch.request_id,
        )
        without = list(branch.without)
        append(AuditRecord("counterfactual_created", branch.training_id, model_id, "0", {"without": without}))
        for number, version in enumerate(branch.versions, 1):
            add_branch_version(model_id, number, version.file, version.state, now)
            facts = {
                **branch_facts(version.file, version.state, version.problem),
                "round": version.round,
                "rounds": 1,
                "num_updates": version.num_updates,
                "num_examples": version.num_examples,
                "without": without,
                "exact": version.is_exact,
                **{name: value for name, value in from_aggregation(stages).items() if name != "shadow"},
            }
            append(AuditRecord("counterfactual_version_made", branch.training_id, model_id, str(number), facts))
        check_stored_bytes(actor_id, quotas)
        return model


def _training_of_actor(training_id: str, actor_id: str) -> TrainingRow:
    training = find_visible(training_id, actor_id)
    if training.actor_id != actor_id:
        raise NotActor("only the actor may replay a training: ask the actor")
    return training
