"""Reads of the configuration of trainings: a round has the last one that was stored from it or an earlier round on."""

from collections.abc import Collection
from hashlib import sha256
from typing import Any

from peewee import ModelSelect

from fedround_server.domain.audit import to_json
from fedround_server.domain.config import Config, ConfigValue, Value, resolve
from fedround_server.store.db.compiled import compiled, in_array
from fedround_server.store.tables.config import to_config
from fedround_server.store.tables.control_schema import ClientConfigRow, TrainingConfigRow
from fedround_server.store.tables.schema import RoundRow


@compiled
def _config(training_id: str, number: int) -> "ModelSelect[TrainingConfigRow]":
    rows = TrainingConfigRow.select().where(
        TrainingConfigRow.training_id == training_id, TrainingConfigRow.from_round <= number
    )
    return rows.order_by(TrainingConfigRow.from_round.desc()).limit(1)


@compiled
def _clients(training_id: str, number: int) -> "ModelSelect[ClientConfigRow]":
    rows = ClientConfigRow.select().where(
        ClientConfigRow.training_id == training_id, ClientConfigRow.from_round <= number
    )
    return rows.order_by(ClientConfigRow.from_round)


@compiled
def _client(training_id: str, number: int) -> "ModelSelect[ClientConfigRow]":
    return _clients.build(training_id, number).limit(1)


@compiled
def _named_clients(training_id: str, number: int, user_ids: Collection[str]) -> "ModelSelect[ClientConfigRow]":
    return _clients.build(training_id, number).where(in_array(ClientConfigRow.user_id, user_ids))


def has_config(training_id: str, number: int) -> bool:
    """Returns whether a participant may get a value in a round."""
    return any(rows.first(training_id, number) is not None for rows in (_config, _client))


def given_config(training_id: str, row: RoundRow) -> dict[str, Any]:
    """Returns what the participants get in a round, as facts of the audit log; empty if they get nothing.

    Texts are replaced by their SHA-256, and so are all values of single participants together.
    """
    facts: dict[str, Any] = {}
    if common := resolve(find_config(training_id, row.number), row.model_version):
        facts["config"] = {name: _fact(value) for name, value in common.items()}
    clients = find_client_config(training_id, row.number)
    if clients:
        own = {user_id: resolve(config, row.model_version) for user_id, config in clients.items()}
        facts["client_config"] = {"clients": len(own), "sha256": sha256(to_json(own).encode()).hexdigest()}
    return facts


def _fact(value: Value) -> object:
    return {"sha256": sha256(value.encode()).hexdigest()} if isinstance(value, str) else value


def find_config(training_id: str, number: int) -> Config:
    """Returns what all participants get in a round, before schedules are resolved."""
    row = _config.first(training_id, number)
    return {} if row is None else to_config(row.config)


def find_client_config(
    training_id: str, number: int, user_ids: Collection[str] | None = None
) -> dict[str, dict[str, ConfigValue]]:
    """Returns by user what single participants get in a round on top of that, by default for all users."""
    rows = _clients.all(training_id, number) if user_ids is None else _named_clients.all(training_id, number, user_ids)
    latest: dict[str, Any] = {row.user_id: row.config for row in rows}
    return {user_id: to_config(config) for user_id, config in latest.items() if config}
