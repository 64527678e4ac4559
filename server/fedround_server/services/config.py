"""Reads and writes configurations; `domain.config.check` says which numbers are valid."""

from collections.abc import Mapping, Sequence

from fedround.v1 import config_pb2
from fedround_server.domain.config import (
    Changes,
    Config,
    ConfigValue,
    CosineSchedule,
    ExponentialSchedule,
    Schedule,
    StepSchedule,
)
from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import fields

MAX_NAME = 100
MAX_TEXT = 1000


def read(field: str, values: Mapping[str, config_pb2.ConfigValue]) -> dict[str, ConfigValue]:
    """Reads a configuration.

    Raises:
        FieldInvalid: A name is empty or too long, or a value is not set or too long.
    """
    config: dict[str, ConfigValue] = {}
    for name, value in read_changes(field, values).items():
        if value is None:
            raise FieldInvalid(
                f'{field}["{name}"]',
                "has no value: set double_value, int64_value, string_value, bool_value or schedule",
            )
        config[name] = value
    return config


def read_changes(field: str, values: Mapping[str, config_pb2.ConfigValue]) -> Changes:
    """Reads changes of a configuration, in which a name without a value is removed.

    Raises:
        FieldInvalid: A name is empty or too long, a schedule is not set, or a text is too long.
    """
    names = [fields.parse_text(field, name, MAX_NAME, required=True) for name in values]
    return {name: _value(f'{field}["{name}"]', values[name]) for name in sorted(names)}


def read_clients(field: str, clients: Mapping[str, config_pb2.Config]) -> dict[str, Config]:
    """Reads the configurations of single participants, by their ids.

    Raises:
        FieldInvalid: An id is not a UUID, or a configuration is not valid, as for `read`.
    """
    return {
        _user_id(field, user_id, clients): read(f'{field}["{user_id}"].values', one.values)
        for user_id, one in clients.items()
    }


def read_client_changes(field: str, clients: Mapping[str, config_pb2.Config]) -> dict[str, Changes]:
    """Reads changes of the configurations of single participants, by their ids; as `read_clients`."""
    return {
        _user_id(field, user_id, clients): read_changes(f'{field}["{user_id}"].values', one.values)
        for user_id, one in clients.items()
    }


def write(config: Config) -> dict[str, config_pb2.ConfigValue]:
    """Encodes a configuration, or the values of a round."""
    return {name: _message(value) for name, value in config.items()}


def write_clients(clients: Mapping[str, Config]) -> dict[str, config_pb2.Config]:
    """Encodes the configurations of single participants."""
    return {user_id: config_pb2.Config(values=write(config)) for user_id, config in clients.items()}


def _user_id(field: str, user_id: str, clients: Sequence[str] | Mapping[str, object]) -> str:
    if len(clients) > fields.MAX_CLIENTS:
        raise FieldInvalid(field, f"names {len(clients)} users; at most {fields.MAX_CLIENTS} a call")
    parsed = fields.parse_id(field, user_id)
    if parsed != user_id and parsed in clients:
        raise FieldInvalid(field, f"names {parsed} twice, in lower and in upper case")
    return parsed


def _value(field: str, message: config_pb2.ConfigValue) -> ConfigValue | None:
    match message.WhichOneof("value"):
        case "double_value":
            return message.double_value
        case "int64_value":
            return message.int64_value
        case "string_value":
            return fields.parse_text(f"{field}.string_value", message.string_value, MAX_TEXT)
        case "bool_value":
            return message.bool_value
        case "schedule":
            return _schedule(f"{field}.schedule", message.schedule)
        case _:
            return None


def _schedule(field: str, message: config_pb2.Schedule) -> Schedule:
    match message.WhichOneof("kind"):
        case "steps":
            return StepSchedule(tuple((step.round, step.value) for step in message.steps.steps))
        case "exponential":
            options = message.exponential
            minimum = options.minimum if options.HasField("minimum") else None
            return ExponentialSchedule(options.start, options.factor, options.every or 1, minimum)
        case "cosine":
            cosine = message.cosine
            return CosineSchedule(cosine.start, cosine.end, cosine.rounds, cosine.warmup_rounds)
        case _:
            raise FieldInvalid(field, "has no kind: set steps, exponential or cosine")


def _message(value: ConfigValue) -> config_pb2.ConfigValue:
    match value:
        # A bool is an int, too.
        case bool():
            return config_pb2.ConfigValue(bool_value=value)
        case int():
            return config_pb2.ConfigValue(int64_value=value)
        case float():
            return config_pb2.ConfigValue(double_value=value)
        case str():
            return config_pb2.ConfigValue(string_value=value)
        case StepSchedule():
            steps = [config_pb2.Step(round=number, value=at) for number, at in value.steps]
            schedule = config_pb2.Schedule(steps=config_pb2.StepSchedule(steps=steps))
        case ExponentialSchedule():
            schedule = config_pb2.Schedule(
                exponential=config_pb2.ExponentialSchedule(
                    start=value.start, factor=value.factor, every=value.every, minimum=value.minimum
                )
            )
        case CosineSchedule():
            schedule = config_pb2.Schedule(
                cosine=config_pb2.CosineSchedule(
                    start=value.start, end=value.end, rounds=value.rounds, warmup_rounds=value.warmup_rounds
                )
            )
    return config_pb2.ConfigValue(schedule=schedule)
