"""Who takes part in the rounds of a random training, whom they wait for, and who is connected."""

import random
import threading
from typing import Any

from calls import new_id
from chaos.retrying_client import RetryingClient, UnexpectedError, User
from chaos.server_process import TIMEOUT_SECONDS
from fedround.v1 import aggregation_pb2, training_pb2, user_pb2

LABELS = {"gpu": "yes"}
"""The labels that cohorts ask for."""
OTHER_LABELS = {"gpu": "no", "country": "de"}
"""Labels of a user that does not have those: two, since the ledger has only their number."""
HALF = (aggregation_pb2.UPDATE_PRECISION_FLOAT16, aggregation_pb2.UPDATE_PRECISION_BFLOAT16)


class RandomCohort:
    """The cohorts of one training, drawn from a seed apart from the training itself."""

    def __init__(self, client: RetryingClient, seed: str, often: float) -> None:
        """Draws it; `often` is how often a training has cohorts and policies like these."""
        self._client = client
        self._draw = random.Random(f"cohort {seed}")
        self.is_used = self._draw.random() < often
        self._cohort = training_pb2.Cohort()
        self._connects = False
        self._listeners: dict[str, threading.Thread] = {}
        self._labelled: set[str] = set()

    @property
    def waits(self) -> bool:
        """Whether rounds wait for connections."""
        return bool(self._cohort.min_available) or self._cohort.available_only

    def chance(self, probability: float) -> bool:
        """Returns True as often as that."""
        return self._draw.random() < probability

    def more_people(self) -> int:
        """Returns how many more participants the training has."""
        return self._draw.randint(0, 4) if self.is_used else 0

    def configure(self, spec: training_pb2.TrainingSpec, num_people: int) -> None:
        """Adds a cohort and policies to a spec."""
        if not self.is_used:
            return
        if self.chance(0.8):
            self._draw_cohort(max(1, spec.round_policy.min_updates), max(2, num_people))
            spec.cohort.CopyFrom(self._cohort)
        self._draw_policy(spec.round_policy)
        if spec.metric_names:
            if self.chance(0.3):
                spec.selection.metric, spec.selection.goal = spec.metric_names[0], training_pb2.GOAL_MAXIMIZE
            if self.chance(0.4):
                spec.evaluation_policy.min_updates = self._draw.randint(0, min(2, self._cohort.size or 2))
                self._draw_policy(spec.evaluation_policy)
        if not spec.aggregation.HasField("fed_dc"):
            if self.chance(0.4):
                spec.update_precision = self._draw.choice(HALF)
            if self.chance(0.3):
                spec.aggregation.fed_prox.mu = self._draw.random()
            if not spec.HasField("uncertainty") and self.chance(0.2):
                spec.tensors.external_base_sha256 = self._draw.randbytes(32).hex()
        absent = spec.round_policy.HasField("absent_after") or spec.evaluation_policy.HasField("absent_after")
        self._connects = self.waits or absent or self.chance(0.3)

    def use(self, cohort: training_pb2.Cohort) -> None:
        """Takes a given cohort, and keeps its participants connected."""
        self.is_used = self._connects = True
        self._cohort.CopyFrom(cohort)

    def _draw_cohort(self, wanted: int, num_people: int) -> None:
        draw, cohort = self._draw, self._cohort
        chosen = draw.choice(("fraction", "fraction", "size", "size", "all"))
        if chosen == "fraction":
            cohort.fraction = draw.choice((0.3, 0.5, 0.7, 1.0))
        elif chosen == "size":
            cohort.size = draw.randint(wanted, max(wanted, num_people - 1))
        if chosen != "all" and self.chance(0.6):
            cohort.over_selection = draw.choice((1.1, 1.5, 2.0, 3.0))
        if self.chance(0.4):
            cohort.labels.update(LABELS)
        if self.chance(0.4):
            cohort.min_available = draw.randint(1, num_people)
        cohort.available_only = self.chance(0.3)
        cohort.seed = draw.getrandbits(64)

    def _draw_policy(self, policy: training_pb2.RoundPolicy) -> None:
        if policy.min_updates and self.chance(0.6):
            policy.wait_after_min.FromMilliseconds(self._draw.randint(20, 1500))
        if policy.min_updates and self.chance(0.3):
            policy.wait_fraction = self._draw.uniform(0.1, 2)
        if self.chance(0.2):
            policy.on_failure = training_pb2.ON_FAILURE_FAIL
        if self.chance(0.3):
            policy.absent_after.FromMilliseconds(self._draw.randint(300, 3000))

    def needs_more(self, num_people: int) -> bool:
        """Returns whether more people must be registered before any round opens again."""
        return num_people < self._cohort.min_available

    def label(self, users: list[User]) -> None:
        """Gives most of some users the labels of the cohort, or all of them if that is only one."""
        for user in users:
            if self._cohort.labels and (len(users) == 1 or self.chance(0.7)):
                self._set_labels(user, LABELS)

    def relabel(self, users: list[User]) -> None:
        """Sometimes gives a user the labels of the cohort, or takes them away; seldom those of the last one."""
        if not self._cohort.labels or not users or not self.chance(0.4):
            return
        user = self._draw.choice(users)
        if user.user_id not in self._labelled:
            self._set_labels(user, LABELS)
        elif len(self._labelled & {one.user_id for one in users}) > 1 or self.chance(0.1):
            self._set_labels(user, OTHER_LABELS if self.chance(0.5) else {})

    def _set_labels(self, user: User, labels: dict[str, str]) -> None:
        request = user_pb2.UpdateUserRequest(user_id=user.user_id, labels=labels)
        if self._client.call(self._client.admin, self._client.users.UpdateUser, request, "USER_NOT_FOUND"):
            self._client.history.add("labelled", user_id=user.user_id, labels=labels)
            (self._labelled.add if labels == LABELS else self._labelled.discard)(user.user_id)

    def connect(self, training_id: str, users: list[User]) -> None:
        """Keeps participants subscribed from now on, if connections matter."""
        for user in users if self._connects else ():
            if user.user_id not in self._listeners:
                name = f"subscription {new_id()}"
                thread = threading.Thread(target=self._listen, args=(training_id, user), name=name, daemon=True)
                self._listeners[user.user_id] = thread
                thread.start()

    def disconnect(self) -> None:
        """Waits until all subscriptions have ended, as they do when the training has."""
        for thread in self._listeners.values():
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive(), "a subscription goes on after the end of its training"

    def _listen(self, training_id: str, user: User) -> None:
        try:
            for event in self._client.events(user, training_id):
                if event.HasField("client_removed"):
                    return
        except UnexpectedError:
            pass  # it is in the history, and the check finds it there

    def split(self, asked: list[User], found: Any) -> tuple[list[User], list[User]]:
        """Splits the members of a round: into those that submit, and those that do not answer if not needed."""
        spare = found.num_participants - found.draw.num_needed if found.HasField("draw") else 0
        silent = [user for user in asked if self.chance(0.5)][: max(0, spare)]
        return [user for user in asked if user not in silent], silent
