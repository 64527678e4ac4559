"""Configurations of trainings and rounds, as Python values and as messages of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from fedround.v1.config_pb2 import (
    Config,
    ConfigValue,
    CosineSchedule,
    ExponentialSchedule,
    Schedule,
    Step,
    StepSchedule,
)

Plain: TypeAlias = float | int | str | bool
"""A value of one round."""
ConfigOption: TypeAlias = Plain | Mapping[int, float] | StepSchedule | ExponentialSchedule | CosineSchedule
"""A value, or a schedule. A mapping is a schedule of steps: from a number of model updates on, a value."""


def values(options: Mapping[str, ConfigOption | None]) -> dict[str, ConfigValue]:
    """Returns the messages of values by name; None becomes a message without a value, which removes one.

    Raises:
        TypeError: A value has another type.
        ValueError: An integer needs more than 64 bits.
    """
    return {name: _value(name, option) for name, option in options.items()}


def clients(options: Mapping[str, Mapping[str, ConfigOption | None]]) -> dict[str, Config]:
    """Returns the messages of the values of single participants, by their ids; raises as `values` does."""
    return {user_id: Config(values=values(own)) for user_id, own in options.items()}


def plain(config: Mapping[str, ConfigValue]) -> dict[str, Plain]:
    """Returns the values of a round; a value of a kind that this SDK does not know is left out."""
    found = {name: (value.WhichOneof("value"), value) for name, value in sorted(config.items())}
    return {name: getattr(value, kind) for name, (kind, value) in found.items() if kind not in (None, "schedule")}


def _value(name: str, option: Any) -> ConfigValue:
    # Numbers of numpy and torch.
    option = option.item() if hasattr(option, "item") else option
    try:
        match option:
            case None:
                return ConfigValue()
            # A bool is an int, too.
            case bool():
                return ConfigValue(bool_value=option)
            case int():
                return ConfigValue(int64_value=option)
            case float():
                return ConfigValue(double_value=option)
            case str():
                return ConfigValue(string_value=option)
            case Mapping():
                steps = [Step(round=number, value=value) for number, value in sorted(option.items())]
                return ConfigValue(schedule=Schedule(steps=StepSchedule(steps=steps)))
            case StepSchedule():
                return ConfigValue(schedule=Schedule(steps=option))
            case ExponentialSchedule():
                return ConfigValue(schedule=Schedule(exponential=option))
            case CosineSchedule():
                return ConfigValue(schedule=Schedule(cosine=option))
    except ValueError as error:
        raise ValueError(f"The configuration value {name!r} is out of range: {error}") from None
    raise TypeError(
        f"The configuration value {name!r} is of the type {type(option).__name__}: give a number, a text, a bool, a"
        " mapping of rounds to numbers, ExponentialSchedule(...) or CosineSchedule(...)."
    )
