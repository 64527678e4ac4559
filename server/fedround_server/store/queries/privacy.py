"""Reads of what trainings with differential privacy have spent."""

from collections.abc import Collection

from fedround_server.domain.privacy import PrivacyAccount
from fedround_server.store.tables.privacy_schema import PrivacyAccountRow


def find_accounts(training_ids: Collection[str]) -> dict[str, PrivacyAccount]:
    """Returns what was spent by training; those without differential privacy have spent nothing."""
    rows = PrivacyAccountRow.select().where(PrivacyAccountRow.training_id.in_(training_ids))
    return {row.training_id: PrivacyAccount(row.rounds, row.rounds_allowed) for row in rows}


def is_budget_spent(training_id: str) -> bool:
    """Returns whether the budget of a training allows no further round."""
    account = find_accounts([training_id]).get(training_id)
    return account is not None and account.rounds_left == 0
