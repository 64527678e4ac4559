"""A random training: an actor and its clients, with all that they may do, drawn from a seed."""

import random
from collections.abc import Callable
from typing import Any

from calls import new_id
from chaos import tensors
from chaos.random_branches import draw_branches
from chaos.random_buffering import RandomBuffering
from chaos.random_cohort import RandomCohort
from chaos.random_control import RandomControl, config_of
from chaos.random_privacy import configure_privacy
from chaos.random_stages import draw_stages
from chaos.random_submissions import CLOSED, GONE, METRIC, RandomSubmissions
from chaos.retrying_client import RetryingClient, User
from damage import flip, stored
from fedround.v1 import round_pb2, training_pb2, user_pb2

DAMAGED = 0.2
"""The fraction of the first updates of rounds that are damaged, where they may be."""


class RandomTraining(RandomSubmissions):
    """One training from its creation to its end."""

    def __init__(
        self,
        client: RetryingClient,
        seed: str,
        *,
        odd: float = 0.07,
        controlled: float = 0.1,
        steered: float = 0.6,
        buffered: float = 0.25,
        private: float = 0.4,
        source: "RandomTraining | None" = None,
    ) -> None:
        """Draws it.

        Args:
            client: Makes the calls.
            seed: Of all that is drawn.
            odd: How often a participant fails, or has no examples.
            controlled: How often the training changes.
            steered: How often it has cohorts, and policies of whom its rounds wait for.
            buffered: How often it is asynchronous.
            private: How often it has differential privacy, if it can have it.
            source: The training whose model it goes on with, if any.
        """
        super().__init__(client, seed, odd)
        self._draw_damage = random.Random(f"{seed} damage")
        self._draw_parts = random.Random(f"{seed} parts")
        self._draw_stages = random.Random(f"{seed} stages")
        self._draw_branches = random.Random(f"{seed} branches")
        self._draw_privacy = random.Random(f"{seed} privacy")
        self._private = private
        self._control = RandomControl(client, seed, controlled)
        self._buffering = RandomBuffering(seed, buffered)
        self._cohort = RandomCohort(client, seed, 0 if self._buffering.is_used else steered)
        self._present: list[User] = []
        self._delayed: list[Callable[[], object]] = []
        self._begun: set[int] = set()
        self._seed = seed
        self._source = source
        self._model_id = ""
        self._has_actor = True
        if source is not None:
            self._kinds = self._trained = source._kinds

    def successor(self) -> "RandomTraining | None":
        """Returns sometimes a training that goes on from the model that this one has made."""
        if not (self._model_id and self._has_actor and self._draw_stages.random() < 0.4):
            return None
        return RandomTraining(self._client, f"{self._seed} on", source=self)

    def run(self) -> None:
        """Runs the training to its end."""
        client = self._client
        self._actor = client.user("ACTOR") if self._source is None else self._source._actor
        for _ in range(self._draw.randint(1, 4) + self._cohort.more_people() + self._buffering.more_people()):
            self._present.append(client.user("CLIENT"))
        self._create(self._drawn_spec())
        self._cohort.label(self._present)
        self._register(self._present[1:])
        self._start()
        for event in client.events(self._actor, self._training_id):
            self._control.go_on(self._actor, self._training_id, event)
            if event.HasField("round_started"):
                started = event.round_started
                self._record("config", round=started.round, config=config_of(started.config))
                self._begin_round(started)
                self._register_enough()
            elif event.HasField("update_lost"):
                self._send_again(event.update_lost)
            elif event.HasField("round_closed"):
                self._cohort.relabel(self._present)
                self._send_too_late()
            elif event.HasField("round_extended"):
                self._send_late()
                self._send_missing(event.round_extended.round)
        self._cohort.disconnect()
        if self._draw.random() < 0.2:
            self._remove_training()

    def _create(self, spec: training_pb2.TrainingSpec) -> None:
        self._spec = spec
        self._is_buffered = spec.aggregation.HasField("buffering")
        if self._source is None:
            request: dict[str, Any] = {"chunk": tensors.write(tensors.fill(self._kinds, self._draw))}
        else:
            request, spec.model_id = {}, self._source._model_id
        for _ in range(1 + (self._draw.random() < 0.2)):
            made = self._client.call(
                self._actor,
                self._client.trainings.CreateTraining,
                lambda: [training_pb2.CreateTrainingRequest(spec=spec, **request)],
            ).training
            self._training_id, self._model_id = made.training_id, made.model_id
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
        goes_on = self._source is not None and self._draw_stages.random() < 0.7
        # Daisy chaining is not for parts of a model.
        if goes_on and not (spec.HasField("tensors") and self._source._spec.aggregation.HasField("fed_dc")):
            spec.aggregation.CopyFrom(self._source._spec.aggregation)
        else:
            draw_stages(spec.aggregation, self._draw_stages)
        draw_branches(spec, self._draw_branches)
        self._cohort.configure(spec, len(self._present))
        mixing = spec.aggregation.mixing
        if mixing.WhichOneof("method") == "nearest_neighbor" and (
            spec.round_policy.min_updates or spec.HasField("cohort")
        ):
            # A round may close with fewer updates than others need.
            mixing.nearest_neighbor.f = 0
        self._buffering.configure(spec)
        self._control.configure(spec)
        configure_privacy(spec, self._draw_privacy, self._private)
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
        if self._cohort.chance(0.5):
            self._cohort.connect(self._training_id, self._present)
        while not self._ask(
            self._actor, self._client.trainings.StartTraining, request, "NO_PARTICIPANTS", "COHORT_IMPOSSIBLE"
        ):
            # Fewer are here than min_updates or the cohort need.
            self._register_another()
        self._record("started")
        if self._draw.random() < 0.2:
            self._ask(self._actor, self._client.trainings.StartTraining, request)
        if self._cohort.waits:
            # Its first round may be pending.
            self._control.act(self._actor, self._training_id)
            self._cohort.relabel(self._present)
        self._cohort.connect(self._training_id, self._present)

    def _register_another(self) -> User:
        """Registers another client, which has the labels of the cohort, and is connected if others are."""
        more = self._client.user("CLIENT")
        self._present.append(more)
        self._cohort.label([more])
        self._register([more])
        self._cohort.connect(self._training_id, [more])
        return more

    def _register_enough(self) -> None:
        """Registers as many others as must be connected, after some were removed."""
        while self._cohort.needs_more(len(self._present)):
            self._register_another()

    def _begin_round(self, started: Any) -> None:
        """Runs a round once: those who join it later, or are asked anew, and the actor receive its start again."""
        if started.round not in self._begun:
            self._begun.add(started.round)
            self._started = started
            self._play_round(started)

    def _play_round(self, started: Any) -> None:
        """Submits what a round asks for, in random order of the users, sometimes with an action in between."""
        draw, order = self._draw, self._asked(started)
        draw.shuffle(order)
        policy = self._spec.round_policy
        may_skip = policy.min_updates or policy.HasField("deadline") or self._is_buffered
        for user in order:
            if self._is_odd() and not self._fail(user, started):
                continue
            if may_skip and draw.random() < (0.5 if self._is_buffered else 0.2):
                self._delayed.append(lambda user=user: self._send(user, started))
                continue
            receipt = self._send(user, started)
            if receipt is not None and user == order[0] and self._draw_damage.random() < DAMAGED:
                self._damage(receipt)
            self._interrupt(user)
        if draw.random() < 0.1:
            more = self._register_another()
            # It belongs to this round only if the round is repeated.
            self._delayed.append(lambda: self._send(more, started))
        found = self._find_round(started.round)
        ends_by_itself = found is not None and (found.HasField("deadline") or found.HasField("wait_end_time"))
        if found is not None and found.state == round_pb2.ROUND_STATE_OPEN and not ends_by_itself:
            self._send_late()

    def _asked(self, started: Any) -> list[User]:
        """Returns who submits in a round at once; of a cohort, some of those that it can do without do not."""
        found = self._find_round(started.round) if self._cohort.is_used else None
        if found is None:
            return list(self._present)
        members = {member.user_id for member in found.participants}
        if found.HasField("draw"):
            told = {name: getattr(found.draw, name) for name in ("attempt", "num_eligible", "num_needed", "num_chosen")}
            self._record("draw", round=started.round, seed=str(found.draw.seed), members=sorted(members), **told)
        present = [user for user in self._present if user.user_id in members]
        asked, silent = self._cohort.split(present, found)
        self._delayed += [lambda user=user: self._send(user, started) for user in silent]
        # Others behave; and if one does not, it is refused.
        asked += [user for user in self._present if user.user_id not in members and self._cohort.chance(0.1)]
        return asked

    def _damage(self, receipt: Any) -> None:
        """Damages the file of an update if it is aggregated, and not yet: the round must wait for it again."""
        policy = self._spec.round_policy
        # A chain assigns most updates as they are, one without examples is not read, and no other may close the
        # round meanwhile.
        if (
            receipt.num_examples
            and not policy.min_updates
            and not self._is_buffered
            and not policy.HasField("deadline")
            and not policy.HasField("absent_after")
            and not self._spec.aggregation.HasField("fed_dc")
            and self._is_open(receipt.round)
        ):
            path = stored(self._client.data_dir, receipt.sha256)
            with self._client.damaging:
                size = path.stat().st_size if path.is_file() else 0
                if not size:
                    return  # a loss of power was first
                facts = {"update_id": receipt.update_id, "sha256": receipt.sha256, "size_bytes": size}
                self._record("damaged", round=receipt.round, **facts)
                if self._draw_damage.random() < 0.5:
                    flip(path, self._draw_damage.randrange(size))
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
            # Its registration may have been rejected, with that of a user who was removed.
            reasons = (*GONE, "LAST_PARTICIPANT", "UNKNOWN_CLIENTS")
            if self._ask(who, self._client.trainings.RemoveClients, request, *reasons):
                self._record("client_removed", user_id=user.user_id)
                self._repeat_removed(user)
            self._present = [one for one in self._present if one != user]
        elif chance < 0.06 and len(self._present) > 1:
            self._remove_user(user)
            self._present = [one for one in self._present if one != user]
        elif chance < 0.07:
            self._remove_training()
        elif chance < 0.08:
            self._has_actor = False
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

    def _send_too_late(self) -> None:
        """Sends the delayed updates of a round that is closed; with cohorts, some of those never come."""
        if self._cohort.is_used:
            self._delayed = [send for send in self._delayed if self._cohort.chance(0.5)]
        slow = [send for send in self._delayed if self._is_buffered and self._buffering.is_slow()]
        self._delayed = [send for send in self._delayed if send not in slow]
        self._send_late()
        self._delayed += slow

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
