"""Configurations to JSON and back: plain values as they are, a schedule as an object with its kind and options."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedround_server.domain.config import (
    Config,
    ConfigValue,
    CosineSchedule,
    ExponentialSchedule,
    StepSchedule,
)


def from_config(config: Config) -> dict[str, Any]:
    """Writes a configuration."""
    return {name: _from_value(value) for name, value in config.items()}


def to_config(data: Mapping[str, Any]) -> dict[str, ConfigValue]:
    """Reads a configuration."""
    return {name: _to_value(value) for name, value in data.items()}


def _from_value(value: ConfigValue) -> Any:
    match value:
        case StepSchedule():
            return {"steps": [list(step) for step in value.steps]}
        case ExponentialSchedule():
            return {"exponential": asdict(value)}
        case CosineSchedule():
            return {"cosine": asdict(value)}
        case _:
            return value


def _to_value(data: Any) -> ConfigValue:
    match data:
        case {"steps": steps}:
            return StepSchedule(tuple((number, value) for number, value in steps))
        case {"exponential": options}:
            return ExponentialSchedule(**options)
        case {"cosine": options}:
            return CosineSchedule(**options)
        case _:
            plain: ConfigValue = data
            return plain
