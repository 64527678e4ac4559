"""What an actor does with a random training while it runs: it is paused, changed and stopped."""

import random
from typing import Any

from calls import new_id
from chaos.retrying_client import RetryingClient, User
from fedround.v1 import control_pb2, round_pb2, training_pb2
from fedround.v1.config_pb2 import Config, ConfigValue

GONE = ("TRAINING_NOT_FOUND", "TRAINING_NOT_RUNNING", "TOKEN_INVALID")
RESUMING = ("round_closed", "round_extended", "client_removed", "participant_failed")
"""The events after one of which a paused training is resumed: no other one may come any more."""


class RandomControl:
    """The changes of one training, drawn from a seed apart from the training itself."""

    def __init__(self, client: RetryingClient, seed: str, often: float) -> None:
        """Draws it; `often` is how often something is changed after a submission."""
        self._client = client
        self._draw = random.Random(f"control {seed}")
        self._often = often
        self._is_paused = False

    def configure(self, spec: training_pb2.TrainingSpec) -> None:
        """Sometimes adds a configuration to a spec, also of its first participant."""
        if self._draw.random() < 0.5:
            for number in (0, 1, 2):
                spec.config["rate"].schedule.steps.steps.add(round=number, value=self._draw.random())
            spec.config["epochs"].int64_value = self._draw.randint(1, 9)
            spec.client_config[spec.client_ids[0]].values["epochs"].int64_value = self._draw.randint(10, 19)

    def act(self, actor: User, training_id: str) -> None:
        """Sometimes pauses, changes or stops a training."""
        if self._draw.random() >= self._often:
            return
        kind = self._draw.choice(("pause", "pause", "config", "config", "stop"))
        if kind == "pause" and not self._is_paused:
            self._is_paused = self.change(actor, training_id, "PauseTraining", "TRAINING_PAUSED")
        elif kind == "config":
            rate = ConfigValue(double_value=self._draw.random())
            self.change(actor, training_id, "UpdateConfig", config={"rate": rate, "epochs": ConfigValue()})
        elif kind == "stop":
            when = self._draw.choice((control_pb2.STOP_AFTER_ROUND, control_pb2.STOP_NOW))
            self.change(actor, training_id, "StopTraining", when=when)

    def go_on(self, actor: User, training_id: str, event: Any) -> None:
        """Resumes a training if it is paused, and would wait otherwise."""
        if not self._is_paused:
            return
        kind = event.WhichOneof("payload")
        if kind in RESUMING or (kind == "training_paused" and self._is_pending(actor, training_id)):
            self._is_paused = False
            self.change(actor, training_id, "ResumeTraining", "TRAINING_NOT_PAUSED")

    def _is_pending(self, actor: User, training_id: str) -> bool:
        """Returns whether the current round waits for connections: it opens only once the training is resumed."""
        request = round_pb2.GetRoundRequest(training_id=training_id)
        found = self._client.call(actor, self._client.rounds.GetRound, request, *GONE, training_id=training_id)
        return bool(found) and found.round.state == round_pb2.ROUND_STATE_PENDING

    def change(self, actor: User, training_id: str, what: str, *expected: str, **fields: Any) -> bool:
        """Makes a change, and sometimes repeats it; returns whether it was made."""
        request = getattr(control_pb2, f"{what}Request")(training_id=training_id, request_id=new_id(), **fields)
        method = getattr(self._client.control, what)
        for _ in range(1 + (self._draw.random() < 0.2)):
            if not self._client.call(actor, method, request, *GONE, *expected, training_id=training_id):
                return False
            facts = {"what": what, "request_id": request.request_id}
            self._client.history.add("controlled", training_id=training_id, **facts)
        return True


def config_of(config: Any) -> dict[str, float | int]:
    """Returns the plain values of a round."""
    return {name: getattr(value, value.WhichOneof("value")) for name, value in config.items()}


def client_config(user_id: str, **values: int) -> dict[str, Config]:
    """Returns the configuration of one participant."""
    return {user_id: Config(values={name: ConfigValue(int64_value=value) for name, value in values.items()})}
