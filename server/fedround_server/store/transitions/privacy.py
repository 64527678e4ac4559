"""What rounds cost of the privacy of participants, and the secrets of trainings."""

from fedround_server.domain.aggregation import Aggregation
from fedround_server.failpoints import reached
from fedround_server.store.queries.version import artifacts_of
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.privacy_schema import PrivacyAccountRow
from fedround_server.store.tables.schema import TrainingRow
from fedround_server.store.transitions.versions import drop_artifacts


def open_account(training_id: str, aggregation: Aggregation, rounds_allowed: int | None) -> None:
    """Opens the account of a new training, if its aggregation has privacy."""
    if aggregation.differential_privacy is not None:
        PrivacyAccountRow.create(training_id=training_id, rounds=0, rounds_allowed=rounds_allowed)


def charge(training: TrainingRow, stages: Aggregation | None) -> None:
    """Charges a round that is being opened, if its aggregation has privacy.

    In the transaction that opens it, so that it is charged once, however often the server starts and however many
    attempts it has. It stays charged if it is abandoned.
    """
    if stages is None or stages.differential_privacy is None:
        return
    account = PrivacyAccountRow.update(rounds=PrivacyAccountRow.rounds + 1)
    if not account.where(PrivacyAccountRow.training_id == training.training_id).execute():
        raise RuntimeError(f"the training {training.training_id} has no account of its privacy")
    reached("privacy.charged")


def drop_secret(training: TrainingRow, version: int) -> None:
    """Removes the secret of trees from a version whose training has ended, or has made another one.

    With it, and with the versions, their noise could be taken away.
    """
    slot = to_spec(training.spec).aggregation.key_slot
    if slot is not None:
        artifacts = artifacts_of(training.model_id, [version])
        drop_artifacts(training.model_id, [artifact for artifact in artifacts if artifact.kind == slot])
