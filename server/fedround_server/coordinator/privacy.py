"""What trainings spend of the privacy of their participants, and what they may."""

import logging

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import AccountingMissing, FieldInvalid, Unavailable
from fedround_server.domain.privacy import MAX_ROUNDS, PrivacySpent, mechanism_of
from fedround_server.domain.training import Training, TrainingSpec
from fedround_server.engine.executor import WorkerLost

log = logging.getLogger(__name__)
FIELD = "spec.aggregation.differential_privacy"


class PrivacyAccounting:
    """Accounts of privacy. What costs time is computed by the engine, which remembers it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def rounds_allowed(self, spec: TrainingSpec) -> int | None:
        """Returns how many rounds the budget of a new training allows; None without privacy, and without a limit.

        Raises:
            FieldInvalid: It allows none.
            AccountingMissing: The server cannot account for privacy.
        """
        privacy = spec.aggregation.differential_privacy
        if privacy is None:
            return None
        mechanism = mechanism_of(privacy, spec.cohort)
        first = await self._context.engine.epsilon(mechanism, 1)
        if not privacy.epsilon_budget:
            return None
        if first > privacy.epsilon_budget:
            raise FieldInvalid(
                f"{FIELD}.epsilon_budget",
                f"is {privacy.epsilon_budget:g}, and one round costs epsilon {first:.4g} with delta {privacy.delta:g}:"
                " allow more, or add more noise (noise_multiplier), or ask fewer participants (cohort.fraction)",
            )
        rounds = await self._context.engine.affordable_rounds(mechanism, privacy.epsilon_budget)
        return None if rounds >= MAX_ROUNDS else rounds

    async def spent(self, training: Training) -> PrivacySpent | None:
        """Returns how much privacy a training has spent; None without differential privacy, or if that is not known."""
        privacy, account = training.spec.aggregation.differential_privacy, training.account
        if privacy is None or account is None:
            return None
        mechanism = mechanism_of(privacy, training.spec.cohort)
        try:
            now, following = [await self._context.engine.epsilon(mechanism, account.rounds + more) for more in (0, 1)]
        except (AccountingMissing, Unavailable, WorkerLost) as error:
            # The training can be shown all the same.
            log.warning("the privacy of training %s: %s", training.training_id, error)
            return None
        return PrivacySpent(now, following, privacy.delta, account.rounds, account.rounds_left)
