"""A random training: an actor and its clients, with all that they may do, drawn from a seed."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from calls import digest, new_id
from chaos import tensors
from chaos.random_control import RandomControl, config_of
from chaos.retrying_client import RetryingClient, User
from damage import flip, stored
from fedround.v1 import event_pb2, round_pb2, training_pb2, user_pb2

CLOSED = ("ROUND_NOT_OPEN", "NOT_IN_COHORT", "UPDATE_SUPERSEDED", "TRAINING_NOT_FOUND", "TOKEN_INVALID")
GONE = ("TRAINING_NOT_FOUND", "TRAINING_ENDED", "TOKEN_INVALID")
METRIC = "accuracy"
DAMAGED = 0.2
"""The fraction of the first updates of rounds that are damaged, where they may be."""


class RandomTraining:
    """One training from its creation to its end."""

    def __init__(self, client: RetryingClient, seed: str, *, odd: float = 0.07, controlled: float = 0.1) -> None:
        """Draws it; `odd` is how often a participant fails, or has no examples, `controlled` how often it changes."""
        self._client = client
        self._draw = random.Random(seed)
        self._draw_damage = random.Random(f"{seed} damage")
        # Apart, so that a seed draws the same trainings whether or not participants fail.
        self._odd_draw = random.Random(f"odd {seed}")
        self._odd = odd
        self._draw_parts = random.Random(f"{seed} parts")
        self._control = RandomControl(client, seed, controlled)
        self._kinds = tensors.shapes(self._draw)
        self._trained = self._kinds
        self._present: list[User] = []
        self._delayed: list[Callable[[], object]] = []
        self._begun: set[int] = set()
        # What each user submitted last: the round, the method, and a request that submits it again.
        self._sent: dict[str, tuple[int, Any, Any]] = {}
        self._training_id = ""

    def run(self) -> None:
        """Runs the training to its end."""
        client = self._client
        self._actor = client.user("ACTOR")
        for _ in range(self._draw.randint(1, 4)):
            self._present.append(client.user("CLIENT"))
        self._create(self._drawn_spec())
        self._register(self._present[1:])
        self._start()
        for event in client.events(self._actor, self._training_id):
            self._control.go_on(self._actor, self._training_id, event)
            if event.HasField("round_started"):
                started = event.round_started
                self._record("config", round=started.round, config=config_of(started.config))
                self._begin_round(started)
            elif event.HasField("update_lost"):
                self._send_again(event.update_lost)
            elif event.HasField("round_closed"):
                self._send_late()
            elif event.HasField("round_extended"):
                self._send_late()
                self._send_missing(event.round_extended.round)
        if self._draw.random() < 0.2:
            self._remove_training()

    def _create(self, spec: training_pb2.TrainingSpec) -> None:
        self._spec = spec
        file = tensors.write(tensors.fill(self._kinds, self._draw))
        for _ in range(1 + (self._draw.random() < 0.2)):
            made = self._client.call(
                self._actor,
                self._client.trainings.CreateTraining,
                lambda: [training_pb2.CreateTrainingRequest(spec=spec, chunk=file)],
            ).training
            self._training_id = made.training_id
            self._record("created", request_id=spec.request_id, model_id=made.model_id)

    def _drawn_spec(self) -> training_pb2.TrainingSpec:
        """Draws what is trained, and how."""
        draw = self._draw
        spec = training_pb2.TrainingSpec(
            name="random",
            target_num_updates=draw.randint(1, 3),
            client_ids=[self._present[0].user_id],
            request_id=new_id(),
            keep_versions=draw.choice([0, 0, 0, 2]),
        )
        if draw.random() < 0.5:
            spec.metric_names.append(METRIC)
        if draw.random() < 0.4:
            spec.aggregation.fed_dc.aggregation_period = draw.randint(1, 3)
            spec.aggregation.fed_dc.seed = draw.randint(0, 99)
        if draw.random() < 0.4:
            spec.uncertainty.swag.rank = draw.randint(0, 3)
            spec.uncertainty.swag.every = draw.randint(0, 1)
        if draw.random() < 0.4:
            spec.round_policy.min_updates = draw.randint(1, 2)
        if draw.random() < 0.3:
            spec.round_policy.deadline.FromMilliseconds(draw.randint(100, 5000))
            if draw.random() < 0.5:
                spec.round_policy.on_missed = training_pb2.ON_MISSED_RETRY
                spec.round_policy.max_retries = draw.randint(1, 2)
        if not spec.HasField("aggregation") and not spec.HasField("uncertainty") and self._draw_parts.random() < 0.5:
            names = self._draw_parts.sample(sorted(self._kinds), self._draw_parts.randint(1, len(self._kinds)))
            self._trained = {name: self._kinds[name] for name in names}
            spec.tensors.trainable.extend(names)
            own = sorted(self._kinds.keys() - names)[:1]
            spec.tensors.private.extend(own)
        self._control.configure(spec)
        return spec

    def _register(self, users: list[User]) -> None:
        if users:
            ids = [user.user_id for user in users]
            request = training_pb2.RegisterClientsRequest(training_id=self._training_id, client_ids=ids)
            if self._ask(self._actor, self._client.trainings.RegisterClients, request, *GONE, "UNKNOWN_CLIENTS"):
                for id_ in ids:
                    self._record("registered", user_id=id_)

    def _start(self) -> None:
        request = training_pb2.StartTrainingRequest(training_id=self._training_id, request_id=new_id())
        while not self._ask(self._actor, self._client.trainings.StartTraining, request, "NO_PARTICIPANTS"):
            # Fewer than min_updates are here.
            self._present.append(self._client.user("CLIENT"))
            self._register(self._present[-1:])
        self._record("started")
        if self._draw.random() < 0.2:
            self._ask(self._actor, self._client.trainings.StartTraining, request)

    def _begin_round(self, started: Any) -> None:
        """Runs a round once: those who join it later, or are asked anew, and the actor receive its start again."""
        if started.round not in self._begun:
            self._begun.add(started.round)
            self._started = started
            self._play_round(started)

    def _play_round(self, started: Any) -> None:
        """Submits what a round asks for, in random order of the users, sometimes with an action in between."""
        draw, order = self._draw, list(self._present)
        draw.shuffle(order)
        may_skip = self._spec.round_policy.min_updates or self._spec.round_policy.HasField("deadline")
        for user in order:
            if self._is_odd() and not self._fail(user, started):
                continue
            if may_skip and draw.random() < 0.2:
                self._delayed.append(lambda user=user: self._send(user, started))
                continue
            receipt = self._send(user, started)
            if receipt is not None and user == order[0] and self._draw_damage.random() < DAMAGED:
                self._damage(receipt)
            self._interrupt(user)
        if draw.random() < 0.1:
            more = self._client.user("CLIENT")
            self._present.append(more)
            self._register([more])
            # It belongs to this round only if the round is repeated.
            self._delayed.append(lambda: self._send(more, started))
        if not self._spec.round_policy.HasField("deadline") and self._is_open(started.round):
            self._send_late()

    def _is_odd(self) -> bool:
        return self._odd_draw.random() < self._odd

    def _fail(self, user: User, started: Any) -> bool:
        """Reports a failure, sometimes twice; returns whether the user submits all the same."""
        request = round_pb2.ReportFailureRequest(
            training_id=self._training_id, round=started.round, reason="TRAIN_FAILED", message=new_id()
        )
        for _ in range(1 + (self._odd_draw.random() < 0.3)):
            if self._ask(user, self._client.rounds.ReportFailure, request, *CLOSED):
                self._record("failure", round=started.round, user_id=user.user_id, reason=request.reason)
        return self._odd_draw.random() < 0.3

    def _is_open(self, number: int) -> bool:
        request = round_pb2.GetRoundRequest(training_id=self._training_id, round=number)
        found = self._ask(self._actor, self._client.rounds.GetRound, request, *GONE)
        return bool(found) and found.round.state == round_pb2.ROUND_STATE_OPEN

    def _damage(self, receipt: Any) -> None:
        """Damages the file of an update if it is aggregated, and not yet: the round must wait for it again."""
        policy = self._spec.round_policy
        # A chain assigns most updates as they are, one without examples is not read, and no other may close the
        # round meanwhile.
        if (
            receipt.num_examples
            and not policy.min_updates
            and not policy.HasField("deadline")
            and not self._spec.aggregation.HasField("fed_dc")
            and self._is_open(receipt.round)
        ):
            self._record("damaged", round=receipt.round, update_id=receipt.update_id, sha256=receipt.sha256)
            path = stored(self._client.data_dir, receipt.sha256)
            if self._draw_damage.random() < 0.5:
                flip(path, self._draw_damage.randrange(path.stat().st_size))
            else:
                path.unlink()

    def _send_again(self, lost: Any) -> None:
        """Submits anew what the server lost."""
        for user in self._present:
            if user.user_id == lost.participant_id and lost.round == self._started.round:
                self._send(user, self._started)

    def _send_missing(self, number: int) -> None:
        """Submits for users that have not in a round that is repeated: those who were registered meanwhile join it."""
        for user in list(self._present):
            if number == self._started.round and self._sent.get(user.user_id, (-1,))[0] != number:
                self._send(user, self._started)

    def _interrupt(self, user: User) -> None:
        """Sometimes controls the training, or removes it, a participant or a user."""
        self._control.act(self._actor, self._training_id)
        chance = self._draw.random()
        if chance < 0.04 and len(self._present) > 1:
            request = training_pb2.RemoveClientsRequest(training_id=self._training_id, client_ids=[user.user_id])
            who = self._draw.choice([self._actor, user])
            if self._ask(who, self._client.trainings.RemoveClients, request, *GONE, "LAST_PARTICIPANT"):
                self._record("client_removed", user_id=user.user_id)
                self._repeat_removed(user)
            self._present = [one for one in self._present if one != user]
        elif chance < 0.06 and len(self._present) > 1:
            self._remove_user(user)
            self._present = [one for one in self._present if one != user]
        elif chance < 0.07:
            self._remove_training()
        elif chance < 0.08:
            self._remove_user(self._actor)

    def _repeat_removed(self, user: User) -> None:
        """Submits again what a removed user submitted last; records whether it counts, or is superseded."""
        if user.user_id in self._sent:
            number, method, request = self._sent[user.user_id]
            answer = self._ask(user, method, request, *CLOSED)
            if answer or answer.reason == "UPDATE_SUPERSEDED":
                self._record("sent_again" if answer else "superseded", round=number, user_id=user.user_id)

    def _send_late(self) -> None:
        """Sends the delayed updates: they count if their round is still open."""
        delayed, self._delayed = self._delayed, []
        for send in delayed:
            send()

    def _send(self, user: User, started: Any) -> Any:
        """Submits what a round asks for; returns the receipt of an update that was accepted."""
        if started.kind == event_pb2.ROUND_KIND_EVALUATE:
            self._report(user, started)
            return None
        return self._submit(user, started)

    def _report(self, user: User, started: Any) -> None:
        metrics = {METRIC: self._draw.random(), "loss": self._draw.random()}
        examples = self._draw.randint(1, 1000)
        request = round_pb2.SubmitMetricsRequest(
            training_id=self._training_id, round=started.round, metrics=metrics, num_examples=examples
        )
        if self._ask(user, self._client.rounds.SubmitMetrics, request, *CLOSED):
            self._record("report", round=started.round, user_id=user.user_id, metrics=metrics, num_examples=examples)
            self._sent[user.user_id] = (started.round, self._client.rounds.SubmitMetrics, request)
            other = round_pb2.SubmitMetricsRequest()
            other.CopyFrom(request)
            other.num_examples += 1
            if self._draw.random() < 0.1 and self._ask(
                user, self._client.rounds.SubmitMetrics, other, *CLOSED, "METRICS_EXIST"
            ):
                self._record("unexpected", reason="a second report was accepted")

    def _submit(self, user: User, started: Any) -> Any:
        draw = self._draw
        if started.assigned and draw.random() < 0.3:
            self._download_assigned(user, started)
        if started.kind == event_pb2.ROUND_KIND_SWAG:
            file = tensors.write(tensors.moments(self._kinds, started.swag.rank, draw))
        else:
            file = tensors.write(tensors.fill(self._trained, draw))
        spec = round_pb2.UpdateSpec(
            training_id=self._training_id,
            round=started.round,
            num_examples=draw.choice([1, draw.randint(1, 1000), draw.randint(1, 1 << 31)]),
            metrics={"loss": draw.random()},
            sha256=digest(file),
            size_bytes=len(file),
        )
        if self._is_odd():
            spec.num_examples = 0
        if draw.random() < 0.3:
            spec.upload_id = new_id()
            half = _messages(spec, file[: len(file) // 2])
            self._client.cut(user, self._client.rounds.SubmitUpdate, half, draw.uniform(0.001, 0.02))
        for _ in range(1 + (draw.random() < 0.15)):
            receipt = self._send_file(user, spec, file)
            if receipt is not None:
                self._record(
                    "receipt",
                    round=receipt.round,
                    user_id=user.user_id,
                    update_id=receipt.update_id,
                    sha256=receipt.sha256,
                    size_bytes=len(file),
                    num_examples=spec.num_examples,
                    metrics=dict(spec.metrics),
                    accept_time=receipt.accept_time.ToMicroseconds(),
                )
                if receipt.num_examples != spec.num_examples:
                    self._record("unexpected", reason="a receipt has another number of examples")
                self._sent[user.user_id] = (
                    started.round,
                    self._client.rounds.SubmitUpdate,
                    lambda: _messages(_changed(spec, upload_id="", offset=0), file),
                )
        if receipt is not None and draw.random() < 0.1:
            self._submit_another(user, spec, file)
        return receipt

    def _send_file(self, user: User, spec: Any, file: bytes) -> Any:
        """Sends an update, from where an earlier try stopped; returns the receipt."""
        while True:
            if spec.upload_id:
                request = round_pb2.GetUploadRequest(upload_id=spec.upload_id)
                found = self._ask(user, self._client.rounds.GetUpload, request, *CLOSED)
                spec.offset = found.committed_size if found else 0
            answer = self._ask(
                user,
                self._client.rounds.SubmitUpdate,
                lambda: _messages(spec, file[spec.offset :]),
                *CLOSED,
                *("UPLOAD_OFFSET", "UPLOAD_INCOMPLETE", "UPLOAD_SUPERSEDED"),
            )
            if answer or answer.reason in CLOSED:
                return answer.receipt if answer else None

    def _submit_another(self, user: User, spec: Any, file: bytes) -> None:
        """Tries to submit updates other than the accepted one: they are rejected, while the training exists."""
        for change in ({"sha256": digest(file + b"more")}, {"num_examples": 1 if spec.num_examples > 1 else 2}):
            other = _changed(spec, upload_id="", offset=0, **change)
            answer = self._ask(
                user,
                self._client.rounds.SubmitUpdate,
                lambda other=other: _messages(other, file),
                *CLOSED,
                "UPDATE_EXISTS",
            )
            if answer:
                self._record("unexpected", reason=f"a second update was accepted, with another {set(change)}")

    def _download_assigned(self, user: User, started: Any) -> None:
        """Downloads the model that is assigned to a member of a chain."""
        request = round_pb2.DownloadAssignedModelRequest(training_id=self._training_id, round=started.round)

        def read(sent: Any, **options: Any) -> bytes:
            messages = list(self._client.rounds.DownloadAssignedModel(sent, **options))
            file = b"".join(message.chunk for message in messages)
            if digest(file) != messages[0].info.sha256:
                self._record("unexpected", reason="an assigned model has other bytes than its digest says")
            return file

        self._ask(user, read, request, *CLOSED)

    def _remove_training(self) -> None:
        request = training_pb2.RemoveTrainingRequest(training_id=self._training_id, force=True)
        if self._ask(self._actor, self._client.trainings.RemoveTraining, request, "TOKEN_INVALID"):
            self._record("removed")

    def _remove_user(self, user: User) -> None:
        request = user_pb2.RemoveUserRequest(user_id=user.user_id, force=True)
        answer = self._client.call(self._client.admin, self._client.users.RemoveUser, request, "USER_NOT_FOUND")
        # After a lost reply the second try finds no user: it is removed all the same.
        if answer or answer.reason == "USER_NOT_FOUND":
            self._client.history.add("user_removed", user_id=user.user_id)

    def _ask(self, user: User, method: Any, request: Any, *expected: str) -> Any:
        return self._client.call(user, method, request, *expected, training_id=self._training_id)

    def _record(self, kind: str, **facts: Any) -> None:
        self._client.history.add(kind, training_id=self._training_id, **facts)


def _changed(spec: Any, **changes: Any) -> Any:
    """A copy of the description of an update, with other fields."""
    other = round_pb2.UpdateSpec()
    other.CopyFrom(spec)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def _messages(spec: Any, data: bytes) -> Iterator[Any]:
    """An update in two chunks."""
    middle = len(data) // 2
    yield round_pb2.SubmitUpdateRequest(spec=spec)
    for chunk in (data[:middle], data[middle:]):
        if chunk:
            yield round_pb2.SubmitUpdateRequest(chunk=chunk)
