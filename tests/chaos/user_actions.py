"""Rare actions of users, which reach the points that random trainings seldom reach."""

import itertools
from collections.abc import Callable
from typing import Any

from calls import digest, new_id
from chaos import tensors
from chaos.random_branches import TOO_FEW
from chaos.random_cohort import LABELS
from chaos.random_control import client_config
from chaos.random_privacy import BUDGETS
from chaos.random_submissions import CLOSED, METRIC, PATHS
from chaos.random_training import RandomTraining
from chaos.retrying_client import RetryingClient
from fedround.v1 import aggregation_pb2, audit_pb2, control_pb2, model_pb2, round_pb2, training_pb2, user_pb2


def users(client: RetryingClient, seed: str) -> None:
    """Creates a user, rotates its token, sets its names and labels, revokes the token and removes the user."""
    user = client.user("CLIENT")
    rotation = user_pb2.RotateTokenRequest(user_id=user.user_id)
    token = client.call(client.admin, client.users.RotateToken, rotation).token
    names = user_pb2.SetCertificateNamesRequest(user_id=user.user_id, certificate_names=[f"{new_id()}.example"])
    client.call(client.admin, client.users.SetCertificateNames, names)
    labels = user_pb2.UpdateUserRequest(user_id=user.user_id, labels={"gpu": seed})
    client.call(client.admin, client.users.UpdateUser, labels)
    revocation = user_pb2.RevokeTokenRequest(user_id=user.user_id, token_id=digest(token.encode())[:16])
    client.call(client.admin, client.users.RevokeToken, revocation, "TOKEN_NOT_FOUND")
    request = user_pb2.RemoveUserRequest(user_id=user.user_id)
    client.call(client.admin, client.users.RemoveUser, request, "USER_NOT_FOUND")
    client.history.add("user_removed", user_id=user.user_id)


def models(client: RetryingClient, seed: str) -> None:
    """Uploads, tags and removes a model, and removes it again, which fails."""
    actor = client.user("ACTOR")
    file = tensors.write({"weight": tensors.Tensor("F32", (1,), (float(len(seed)),))})
    spec = model_pb2.ModelSpec(name=new_id())
    made = client.call(
        actor, client.models.UploadModel, lambda: [model_pb2.UploadModelRequest(spec=spec, chunk=file)]
    ).model
    tag = model_pb2.TagModelVersionRequest(model_id=made.model_id, version=0, tag="good")
    client.call(actor, client.models.TagModelVersion, tag)
    removal = model_pb2.RemoveModelRequest(model_id=made.model_id)
    for _ in range(2):
        client.call(actor, client.models.RemoveModel, removal, "MODEL_NOT_FOUND")


class ShortTraining(RandomTraining):
    """A training of one kind."""

    def create_and_remove(self) -> None:
        """Creates, registers, removes a client, starts and removes the training."""
        self._gather()
        self._register(self._present[1:])
        left = self._present.pop()
        request = training_pb2.RemoveClientsRequest(training_id=self._training_id, client_ids=[left.user_id])
        for _ in range(2):
            if self._ask(self._actor, self._client.trainings.RemoveClients, request):
                self._record("client_removed", user_id=left.user_id)
        self._start()
        report = round_pb2.SubmitMetricsRequest(training_id=self._training_id, round=0, num_examples=1)
        self._ask(self._present[0], self._client.rounds.SubmitMetrics, report, *CLOSED)
        self._remove_training()

    def control(self) -> None:
        """Starts, pauses, changes, resumes and stops the training; each change is made twice with the same id."""
        self._gather()
        self._start()
        values = client_config(self._present[0].user_id, epochs=1)
        for what, fields in {
            "PauseTraining": {},
            "UpdateConfig": {"client_config": values},
            "ResumeTraining": {},
            "StopTraining": {"when": control_pb2.STOP_NOW},
        }.items():
            self._control.change(self._actor, self._training_id, what, **fields)
        self._follow()

    def miss_a_deadline(self) -> None:
        """Starts the training, and submits nothing before the deadline."""
        self._gather(deadline_ms=30)
        self._start()
        self._follow()

    def fail(self) -> None:
        """Starts the training, and has all participants fail, the first one twice."""
        self._gather()
        self._register(self._present[1:])
        self._start()
        for user in [self._present[0], *self._present]:
            request = round_pb2.ReportFailureRequest(training_id=self._training_id, reason="TRAIN_FAILED")
            if self._ask(user, self._client.rounds.ReportFailure, request, *CLOSED):
                self._record("failure", round=0, user_id=user.user_id, reason=request.reason)
        self._follow()

    def be_absent(self) -> None:
        """Starts the training, and connects no participant."""
        self._gather(absent_after_ms=30)
        self._start()
        self._follow()

    def wait_for_a_connection(self) -> None:
        """Starts the training, whose rounds open once a participant is connected, and submits all that they ask for."""
        self._gather(cohort=training_pb2.Cohort(min_available=1), metric_names=[METRIC])
        self._register(self._present[1:])
        self._start()
        for event in self._client.events(self._present[0], self._training_id):
            if event.HasField("round_started") and event.round_started.round not in self._begun:
                self._started = event.round_started
                self._begun.add(self._started.round)
                for user in self._present:
                    self._send(user, self._started)

    def over_select(self) -> None:
        """Runs a training in which two of three clients are asked and one is needed; the other one does not answer."""
        cohort = training_pb2.Cohort(size=1, over_selection=2, labels=LABELS, seed=7)
        self._cohort.use(cohort)
        self._gather(cohort=cohort)
        self._cohort.label(self._present[:1])
        self._cohort.label(self._present[1:2])
        self._register(self._present[1:])
        self._start()
        for event in self._client.events(self._actor, self._training_id):
            if event.HasField("round_started") and event.round_started.round not in self._begun:
                self._begun.add(event.round_started.round)
                self._send(self._asked(event.round_started)[0], event.round_started)
        self._cohort.disconnect()

    def be_slow(self) -> None:
        """Runs an asynchronous training, in which the first participant sends what it began with two versions later."""
        buffering = aggregation_pb2.Buffering(size=2, max_staleness=2)
        self._gather(aggregation=aggregation_pb2.Aggregation(buffering=buffering), rounds=3)
        self._register(self._present[1:])
        self._start()
        slow, *fast = self._present
        first = None
        for event in self._client.events(self._actor, self._training_id):
            if event.HasField("round_started") and event.round_started.round not in self._begun:
                self._begun.add(event.round_started.round)
                first = first or event.round_started
                is_last = event.round_started.round == 2
                senders = [(slow, first), (fast[0], event.round_started)] if is_last else None
                for user, started in senders or [(user, event.round_started) for user in fast]:
                    self._submit(user, started)

    def _follow(self) -> None:
        for _ in self._client.events(self._actor, self._training_id):
            pass

    def lose_an_update(self) -> None:
        """Submits all updates, the first of which is damaged before the last one is there, and submits it again."""
        self._gather()
        self._register(self._present[1:])
        self._start()
        for event in self._client.events(self._actor, self._training_id):
            if event.HasField("round_started") and event.round_started.round not in self._begun:
                self._started = event.round_started
                self._begun.add(self._started.round)
                for user in self._present:
                    receipt = self._submit(user, self._started)
                    if receipt is not None and user == self._present[0]:
                        self._damage(receipt)
            elif event.HasField("update_lost"):
                self._send_again(event.update_lost)

    def branch(self) -> None:
        """Runs two rounds with shadows and without retention, and replays them without a participant, twice."""
        aggregation = aggregation_pb2.Aggregation()
        aggregation.shadow.add().server_optimizer.adam.SetInParent()
        aggregation.shadow.add().krum.f = TOO_FEW
        self._gather(aggregation=aggregation, rounds=2)
        self._run_rounds()
        request = audit_pb2.ReplayTrainingRequest(
            training_id=self._training_id,
            without_client_ids=[self._present[0].user_id],
            model_name="branch",
            request_id=new_id(),
        )

        def replay(sent: Any, **options: Any) -> list[Any]:
            return list(self._client.audit.ReplayTraining(sent, **options))

        for _ in range(2):
            answer = self._client.call(self._actor, replay, request)
            self._record("branched", model_id=answer[-1].model_id, versions=2)

    def spend_a_budget(self) -> None:
        """Runs a training whose budget of privacy allows two of the three rounds."""
        aggregation = aggregation_pb2.Aggregation()
        aggregation.clipping.fixed.norm = 1
        aggregation.differential_privacy.noise_multiplier, budgets = BUDGETS[False]
        aggregation.differential_privacy.epsilon_budget = budgets[1]
        self._gather(aggregation=aggregation, rounds=3)
        self._run_rounds()

    def keep_nothing(self) -> None:
        """Runs two rounds whose updates are not kept."""
        self._gather(rounds=2, keep_update_rounds=0)
        self._run_rounds()

    def send_by_all_paths(self) -> None:
        """Runs two rounds, each with a small, a large and a slow update."""
        self._paths = itertools.cycle(PATHS)
        self._gather(rounds=2)
        self._run_rounds()

    def _run_rounds(self) -> None:
        self._register(self._present[1:])
        self._start()
        for event in self._client.events(self._actor, self._training_id):
            if event.HasField("round_started") and event.round_started.round not in self._begun:
                self._started = event.round_started
                self._begun.add(self._started.round)
                for user in self._present:
                    self._send(user, self._started)

    def _gather(
        self, deadline_ms: int | None = None, absent_after_ms: int | None = None, rounds: int = 1, **fields: Any
    ) -> None:
        self._actor = self._client.user("ACTOR")
        self._present = [self._client.user("CLIENT") for _ in range(3)]
        first = [self._present[0].user_id]
        spec = training_pb2.TrainingSpec(
            name="short", target_num_updates=rounds, client_ids=first, request_id=new_id(), **fields
        )
        if deadline_ms is not None:
            spec.round_policy.deadline.FromMilliseconds(deadline_ms)
        if absent_after_ms is not None:
            spec.round_policy.absent_after.FromMilliseconds(absent_after_ms)
        self._create(spec)


def branches(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed, odd=0).branch()


def budgets(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).spend_a_budget()


def trainings(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).create_and_remove()


def deadlines(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).miss_a_deadline()


def control(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).control()


def damages(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).lose_an_update()


def failures(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).fail()


def absences(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).be_absent()


def connections(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).wait_for_a_connection()


def cohorts(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed).over_select()


def paths(client: RetryingClient, seed: str) -> None:
    ShortTraining(client, seed, odd=0).send_by_all_paths()


USER_ACTIONS: dict[str, Callable[[RetryingClient, str], Any]] = {
    "user.": users,
    "credential.": users,
    "model.": models,
    "counterfactual.": branches,
    "privacy.": budgets,
    "training.": trainings,
    "control.": control,
    "round.judge": deadlines,
    "deadline.": deadlines,
    "round.reopen": damages,
    "aggregation.reopened": damages,
    "submission.report_failure": failures,
    "round.exclude_absent": absences,
    "round.open.": connections,
    "submission.submit_report": connections,
    "round.closed": cohorts,
    "upload.": paths,
    "blob.": paths,
    "journal.": paths,
}


def action_for(point: str) -> Callable[[RetryingClient, str], Any] | None:
    """Returns the action that reaches a point soon; None for points that every training reaches."""
    return next((run for prefix, run in USER_ACTIONS.items() if point.startswith(prefix)), None)
