"""A relay: a participant whose updates are sums of the updates of the participants of another server, its own.

It keeps nothing itself. Each round of the parent is a training of one round at its own server, under an id that follows
from that of the round: whatever moment a relay ends at, the next one finds the training, and goes on with it.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import grpc

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_TRAIN, RoundStarted
from fedround.v1.user_pb2 import ROLE_CLIENT, User
from fedround_client.errors import FedroundError, InvalidArgument, ModelTooLarge, RoleRequired, RoundNotOpen
from fedround_client.logs import get_logger
from fedround_client.model import ModelCalls
from fedround_client.payload import Payload
from fedround_client.progress import kind_name
from fedround_client.relay_round import NoSum, RelayOptions, RelayRound
from fedround_client.relay_trainings import RelayTrainings
from fedround_client.round import RoundCalls
from fedround_client.round_over import OverCheck, RoundOver
from fedround_client.rpc import Rpc
from fedround_client.server_clock import ServerClock
from fedround_client.training import TrainingCalls

logger = get_logger(__name__)

NOT_A_CLIENT = (
    'The user "{}" does not have the role CLIENT at the parent, which a relay needs there: create one with'
    " `fedround user create NAME --role CLIENT`, and pass its token to `fedround relay` with FEDROUND_PARENT_TOKEN or"
    " --parent-token-file."
)

MAX_EXAMPLES = 2**31
"""The largest number of examples of a report."""


class Relay(TrainingCalls, ModelCalls, RoundCalls):
    """Runs the rounds of the parent; `Runner` describes the methods."""

    def __init__(self, parent: Rpc, own: Rpc, options: RelayOptions, training_id: str | None = None) -> None:
        """Creates it.

        Args:
            parent: Calls the parent, as a participant.
            own: Calls the relay's own server, as an actor that has no other trainings.
            options: How to run rounds.
            training_id: The only training of the parent that this relay takes part in; None if it may be in several.
        """
        self._rpc = parent
        self._training_id = training_id
        self._trainings = RelayTrainings(own, options)
        self._margin = options.margin
        self._user_id = ""
        self.server_clock = ServerClock(parent.clock)

    @property
    def can_evaluate(self) -> bool:
        """Returns True."""
        return True

    def participate_as(self, user: User) -> None:
        """Names the user, of whom no other program takes part in the same training.

        Raises:
            RoleRequired: The user is not a client of the parent: an actor would get the rounds of its own trainings.
        """
        if user.role != ROLE_CLIENT:
            raise RoleRequired(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED", NOT_A_CLIENT.format(user.name))
        self._user_id = user.user_id

    def keeps_update(self, training_id: str) -> bool:
        """Returns False: asynchronous trainings take no sums."""
        return False

    def forget(self, training_id: str) -> None:
        """Does nothing."""

    def forget_all(self) -> None:
        """Does nothing."""

    def forget_update(self, training_id: str, number: int) -> None:
        """Does nothing: the sum stays at the relay's own server until the next round."""

    def forget_training(self, training_id: str) -> None:
        """Removes what was made for a training of the parent that has ended."""
        try:
            self._trainings.remove(training_id)
        except FedroundError as error:
            logger.warning("What was made for training %s could not be removed: %s", training_id, error)

    def run(self, training_id: str, started: RoundStarted, name: str) -> int:
        """Runs a round: a training at the relay's own server, whose result is sent to the parent.

        Raises:
            RoundOver: The parent's round is over; or the participants have no result, and the parent was told so.
            FedroundError: The parent's answer is an error that is not transient.
        """
        try:
            spec = self._rpc.retrying(None)(self.get_training, training_id).spec
            over = OverCheck(self._rpc, training_id, started)
            round_ = RelayRound(training_id, spec, started, self._seconds(started), over)
            with self._folder(training_id) as folder:
                self._run(round_, Path(folder), name)
        except NoSum as problem:
            reason, message = problem.args
            logger.warning("%s: %s", name, message)
            with suppress(RoundNotOpen):
                self._rpc.retrying(None)(self.report_failure, training_id, started.round, reason, message)
            raise RoundOver from None
        except (RoundOver, RoundNotOpen):
            # What cannot be removed now is removed with the next round.
            with suppress(FedroundError):
                self._trainings.remove(training_id)
            raise
        return started.round

    def _folder(self, training_id: str) -> tempfile.TemporaryDirectory[str]:
        """Returns a folder for the files of a round, after those of relays that were killed were removed.

        The parent lets no other program take part in the same trainings as the same user.
        """
        prefix = f"fedround-relay-{self._user_id}-"
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}{self._training_id or ''}*"):
            shutil.rmtree(left, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=f"{prefix}{training_id}-")

    def _run(self, round_: RelayRound, folder: Path, name: str) -> None:
        started = round_.started
        if started.kind not in (ROUND_KIND_TRAIN, ROUND_KIND_EVALUATE):
            raise NoSum("UNSUPPORTED_ROUND", f"A relay runs no rounds of kind {kind_name(started)}.")
        # Reports have no sums: so the participants of a relay may be relays when it evaluates.
        if not round_.evaluates and not round_.spec.allow_relays:
            raise NoSum("RELAYS_NOT_ALLOWED", "The training takes no sums: its actor creates it with allow_relays.")
        self._trainings.remove_others(round_)
        info = started.model
        model = self.download_model(info.model_id, info.version, to=folder / "model.safetensors", attempts=None)
        training = self._trainings.begin(round_, model)
        logger.info("%s: %d participants of this relay are asked", name, training.num_participants)
        self._trainings.finish(round_, training)
        means = self._trainings.means(round_, training)
        if round_.evaluates:
            number = min(means.num_examples, MAX_EXAMPLES)
            self._rpc.retrying(None)(
                self.submit_metrics, round_.training_id, started.round, dict(means.metrics), number
            )
            return
        counts = self._trainings.download_sum(round_, training, folder / "sum.safetensors")
        sent = self._rpc.clock.time()
        try:
            receipt = self._submit_payload(
                round_.training_id,
                started.round,
                Payload.of(folder / "sum.safetensors"),
                counts["num_examples"],
                dict(means.metrics),
                num_updates=counts["num_updates"],
                attempts=None,
            )
        except (InvalidArgument, ModelTooLarge) as error:
            # Other rounds, and those of other trainings, may have a sum that the parent takes.
            raise NoSum(error.reason, f"The parent does not take the sum: {error}") from error
        self.server_clock.learn(sent, receipt.accept_time)
        logger.info("%s: sent the sum of %d updates", name, counts["num_updates"])

    def _seconds(self, started: RoundStarted) -> float | None:
        """Returns how long a round of the participants may take; None for any time.

        Raises:
            RoundOver: The parent's deadline has passed.
        """
        if not started.HasField("deadline"):
            return None
        left = self.server_clock.seconds_until(started.deadline)
        if left <= 0:
            raise RoundOver
        return max(left - self._margin, left / 2)
