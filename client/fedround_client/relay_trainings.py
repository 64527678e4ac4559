"""The trainings at a relay's own server: one of one round for each round of the parent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fedround.v1.aggregation_pb2 import PartialSum
from fedround.v1.model_pb2 import MetricReport, Model
from fedround.v1.round_pb2 import ROUND_STATE_ABANDONED, ROUND_STATE_DONE
from fedround.v1.training_pb2 import (
    INTEGER_TENSORS_MEAN,
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ERROR,
    TRAINING_STATE_INITIAL,
    Training,
)
from fedround_client.config import plain
from fedround_client.errors import FedroundError, FieldInvalid, ModelNotFound, TrainingNotFound, TrainingNotInitial
from fedround_client.logs import get_logger
from fedround_client.model import ModelCalls
from fedround_client.relay_round import NoSum, RelayOptions, RelayRound, made_for
from fedround_client.round import RoundCalls
from fedround_client.round_over import RoundOver
from fedround_client.rpc import Rpc
from fedround_client.safetensors_header import METADATA, PREFIX
from fedround_client.training import TrainingCalls
from fedround_client.transport import Transport
from fedround_client.user import UserCalls

logger = get_logger(__name__)
Result = TypeVar("Result")
Named = TypeVar("Named", Training, Model)

MAX_REGISTERED = 10_000
"""How many users one call registers."""
FOREVER = 365 * 86400.0
"""Seconds: the longest that a round may wait for those that are under way."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at a training: soon after its start, and later."""


class RelayTrainings(UserCalls, TrainingCalls, RoundCalls, ModelCalls):
    """Has the participants of a relay run a round.

    Methods call the relay's own server until it answers. They raise RoundOver if the parent waits no more, and NoSum if
    the answer is an error that is not transient.
    """

    def __init__(self, rpc: Rpc, options: RelayOptions) -> None:
        """Creates it.

        Args:
            rpc: Calls the relay's own server, as an actor that has no other trainings.
            options: How to run rounds.
        """
        self._rpc = rpc
        self._options = options

    def begin(self, round_: RelayRound, model: Path) -> Training:
        """Returns the training for a round, which was started: by this call, or by a relay that has ended since.

        Args:
            round_: The round.
            model: A file with the parent's model.
        """
        return self._patiently(round_, lambda: self._begin(round_, model))

    def finish(self, round_: RelayRound, training: Training) -> None:
        """Waits until a training has a result."""
        pause, training_id = FIRST_PAUSE, training.training_id
        while training.state not in (TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR):
            if round_.is_over():
                raise RoundOver
            self._rpc.clock.sleep_for(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            # A training has the ids of all its participants, which the summary of its round has not.
            found = self._patiently(round_, lambda: self.get_round(training_id, 0, summary=True))
            if found.state in (ROUND_STATE_DONE, ROUND_STATE_ABANDONED):
                training = self._patiently(round_, lambda: self.get_training(training_id))
        if training.state == TRAINING_STATE_ERROR:
            raise NoSum(training.error.reason, f"The relay's participants have no result: {training.error.message}")

    def means(self, round_: RelayRound, training: Training) -> MetricReport:
        """Returns the means of the metrics that participants have reported, and of how many examples."""

        def find() -> MetricReport:
            return next((one for one in self.metrics(training.model_id) if not one.reporter_id), MetricReport())

        return self._patiently(round_, find)

    def download_sum(self, round_: RelayRound, training: Training, path: Path) -> Mapping[str, int]:
        """Writes the sum to a file, and returns its num_examples and num_updates."""
        self._patiently(round_, lambda: self.download_model(training.model_id, 1, to=path))
        return _read_counts(path)

    def remove_others(self, round_: RelayRound) -> None:
        """Removes what was made for earlier rounds of the parent's training."""
        self._patiently(round_, lambda: self.remove(round_.training_id, keep=round_.name))

    def remove(self, training_id: str, keep: str = "") -> None:
        """Removes what was made for a training of the parent; calls the server once.

        Args:
            training_id: UUID of the parent's training.
            keep: The name of what stays.

        Raises:
            FedroundError: The server does not answer, or with another error.
        """
        begin = made_for(training_id)
        for training in _chosen(self.trainings("ACTOR"), begin, keep):
            with suppress(TrainingNotFound):
                self.remove_training(training.training_id, force=True)
        for model in _chosen(self.models(), begin, keep):
            with suppress(ModelNotFound):
                self.remove_model(model.model_id)

    def _begin(self, round_: RelayRound, model: Path) -> Training:
        wanted = self._options.labels.items()
        ids = [user.user_id for user in self.users("CLIENT") if wanted <= dict(user.labels).items()]
        if not ids:
            raise NoSum("NO_PARTICIPANTS", "The relay's own server has no users that could take part.")
        training = self._created(round_, model, ids)
        if training.state != TRAINING_STATE_INITIAL:
            return training
        for start in range(MAX_REGISTERED, len(ids), MAX_REGISTERED):
            self.register_clients(training.training_id, ids[start : start + MAX_REGISTERED])
        try:
            return self.start_training(training.training_id)
        except TrainingNotInitial:
            # The answer to an earlier call was lost.
            return self.get_training(training.training_id)

    def _created(self, round_: RelayRound, model: Path, ids: list[str]) -> Training:
        """Returns the training for a round; a new one if that of an earlier attempt at the round has failed."""
        attempts = max(1, round_.started.attempt)
        for attempt in range(attempts):
            try:
                training = self._create(round_, model, ids, round_.request_id(attempt))
            except FieldInvalid as error:
                # Of request_id: the training of an earlier attempt was removed.
                if attempt + 1 == attempts or "request_id" not in error.field_violations:
                    raise
                continue
            if training.state != TRAINING_STATE_ERROR:
                break
        return training

    def _create(self, round_: RelayRound, model: Path, ids: list[str], request_id: str) -> Training:
        started, spec, transport = round_.started, round_.spec, Transport.of(round_.started)
        common: dict[str, Any] = {
            "name": round_.name,
            "metric_names": started.metric_names,
            "client_ids": ids[:MAX_REGISTERED],
            "min_updates": min(self._options.min_updates, len(ids)),
            "wait_after_min": FOREVER,
            "deadline": round_.seconds,
            "absent_after": self._absent_after(round_),
            "allow_non_finite_buffers": spec.allow_non_finite_buffers,
            "private": started.private,
            "external_base_sha256": started.external_base_sha256,
            "config": plain(started.config),
            "request_id": request_id,
        }
        if round_.evaluates:
            stored = self._stored(round_, model)
            return self.create_training(model_id=stored, target_num_updates=0, **common)
        return self.create_training(
            model,
            target_num_updates=1,
            evaluation="NEVER",
            aggregation=PartialSum(mu=started.aggregation.fed_prox.mu),
            keep_update_rounds=0,
            max_num_examples=spec.max_num_examples,
            max_update_norm=spec.max_update_norm,
            update_precision=transport.default.precision,
            tensor_precisions=transport.rules,
            stochastic_rounding=bool(transport.default.stochastic_rounding),
            integer_tensors="MEAN" if spec.integer_tensors == INTEGER_TENSORS_MEAN else "HEAVIEST",
            trainable=started.trainable,
            allow_relays=self._options.allow_relays,
            **common,
        )

    def _stored(self, round_: RelayRound, model: Path) -> str:
        """Returns the id of a stored model, which an evaluation needs; an upload has no id, so it is found by name."""
        for one in self.models():
            if one.name == round_.name:
                return one.model_id
        allow = round_.spec.allow_non_finite_buffers
        return self.upload_model(model, name=round_.name, allow_non_finite_buffers=allow).model_id

    def _absent_after(self, round_: RelayRound) -> float | None:
        if self._options.absent_after is not None:
            return self._options.absent_after
        policy = round_.spec.round_policy
        return policy.absent_after.ToTimedelta().total_seconds() if policy.HasField("absent_after") else None

    def _patiently(self, round_: RelayRound, call: Callable[[], Result]) -> Result:
        pause = FIRST_PAUSE
        while True:
            try:
                return call()
            except FedroundError as error:
                if not error.transient:
                    raise NoSum(error.reason, f"The relay's own server: {error}") from error
                if pause == LONGEST_PAUSE:
                    logger.warning("The relay's own server: %s", error)
            if round_.is_over():
                raise RoundOver
            self._rpc.clock.sleep_for(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _chosen(found: Iterable[Named], begin: str, keep: str) -> list[Named]:
    """Returns the trainings or models that have a name with this beginning, and not another one."""

    def name_of(one: Named) -> str:
        return one.spec.name if isinstance(one, Training) else one.name

    return [one for one in found if name_of(one).startswith(begin) and name_of(one) != keep]


def _read_counts(path: Path) -> Mapping[str, int]:
    """Returns the metadata of a partial sum."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(PREFIX), "little")
        metadata = json.loads(file.read(length))[METADATA]
    return {name: int(metadata[name]) for name in ("num_examples", "num_updates")}
