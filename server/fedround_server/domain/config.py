"""Configuration: named values that the server resolves for each round and each participant."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fedround_server.domain.errors import FieldInvalid

MAX_VALUES = 100
MAX_STEPS = 1000
MAX_CONFIG_BYTES = 1 << 20
"""Limit on `size_bytes` of the configuration of a training: GetTraining shows all of it in one message."""

Value: TypeAlias = float | int | str | bool
"""A value of one round. Integers have 64 bits, floats are finite."""


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """A value that changes at some rounds.

    Attributes:
        steps: Rounds, each with the value from then on, in the order of the rounds; the first is round 0.
    """

    steps: tuple[tuple[int, float], ...]

    def at(self, t: int) -> float:
        """Returns the value at t."""
        return self.steps[bisect_right(self.steps, t, key=lambda step: step[0]) - 1][1]

    def check(self, field: str, last: int) -> None:
        """Checks the steps, as the function `check` does."""
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise FieldInvalid(f"{field}.steps", f"has {len(self.steps)} steps; must have 1 to {MAX_STEPS}")
        for index, (number, value) in enumerate(self.steps):
            path = f"{field}.steps[{index}]"
            if index == 0 and number != 0:
                raise FieldInvalid(f"{path}.round", f"is {number}; must be 0: the first step has the first value")
            if index > 0 and number <= self.steps[index - 1][0]:
                before = self.steps[index - 1][0]
                raise FieldInvalid(f"{path}.round", f"is {number}; must be more than that of the step before, {before}")
            _check_finite(f"{path}.value", value)


@dataclass(frozen=True, slots=True)
class ExponentialSchedule:
    """A value that is multiplied again and again: start * factor ^ (t // every), at least minimum."""

    start: float
    factor: float
    every: int = 1
    minimum: float | None = None

    def at(self, t: int) -> float:
        """Returns the value at t; infinity where it is larger than any float."""
        try:
            value = self.start * self.factor ** (t // self.every)
        except OverflowError:
            value = math.copysign(math.inf, self.start) if self.start else 0.0
        return value if self.minimum is None else max(self.minimum, value)

    def check(self, field: str, last: int) -> None:
        """Checks the numbers, as the function `check` does."""
        _check_finite(f"{field}.start", self.start)
        _check_finite(f"{field}.factor", self.factor)
        if self.factor <= 0:
            raise FieldInvalid(f"{field}.factor", f"is {self.factor}; must be more than 0")
        if self.every < 1:
            raise FieldInvalid(f"{field}.every", f"is {self.every}; must be >= 1, and 0 means 1")
        if self.minimum is not None:
            _check_finite(f"{field}.minimum", self.minimum)
        # The value is monotonic: if it is finite at the end, it is finite at all times.
        if not math.isfinite(self.at(last)):
            raise FieldInvalid(
                f"{field}.factor", f"is {self.factor}: the value is infinite before the end of the training, at {last}"
            )


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """A value that falls along half a cosine, after a linear warm-up (Loshchilov and Hutter, 2017, without restarts).

    With w warm-up rounds it is start * (t + 1) / (w + 1) for t < w; then
    end + (start - end) * (1 + cos(pi * min(1, (t - w) / (rounds - w)))) / 2.
    """

    start: float
    end: float
    rounds: int
    warmup_rounds: int = 0

    def at(self, t: int) -> float:
        """Returns the value at t."""
        warmup = self.warmup_rounds
        if t < warmup:
            return self.start * ((t + 1) / (warmup + 1))
        done = min(1.0, (t - warmup) / (self.rounds - warmup))
        # A weighted mean of start and end: the two ends are exact, and nothing overflows between them.
        part = (1 + math.cos(math.pi * done)) / 2
        return self.start * part + self.end * (1 - part)

    def check(self, field: str, last: int) -> None:
        """Checks the numbers, as the function `check` does."""
        _check_finite(f"{field}.start", self.start)
        _check_finite(f"{field}.end", self.end)
        if self.rounds < 1:
            raise FieldInvalid(f"{field}.rounds", f"is {self.rounds}; must be >= 1")
        if not 0 <= self.warmup_rounds < self.rounds:
            raise FieldInvalid(
                f"{field}.warmup_rounds", f"is {self.warmup_rounds}; must be in 0..{self.rounds - 1}, less than rounds"
            )


Schedule: TypeAlias = StepSchedule | ExponentialSchedule | CosineSchedule
ConfigValue: TypeAlias = Value | Schedule
Config: TypeAlias = Mapping[str, ConfigValue]
Changes: TypeAlias = Mapping[str, ConfigValue | None]
"""New values by name; None removes a value."""


def resolve(config: Config, t: int) -> dict[str, Value]:
    """Returns the values of a round.

    Args:
        config: Values and schedules by name.
        t: The number of model updates before the round.
    """
    return {name: value.at(t) if isinstance(value, Schedule) else value for name, value in sorted(config.items())}


def merge(config: Config, changes: Changes) -> dict[str, ConfigValue]:
    """Returns a configuration with changes: new values replace old ones, and the others stay."""
    merged = {**config, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def check(field: str, config: Config, last: int) -> None:
    """Checks numbers and schedules, and that there are not too many values.

    Args:
        field: The field that has the values, for errors.
        config: Values and schedules by name.
        last: The largest number of model updates before a round.

    Raises:
        FieldInvalid: A number is out of range, or there are more than MAX_VALUES values.
    """
    if len(config) > MAX_VALUES:
        raise FieldInvalid(field, f"has {len(config)} values; at most {MAX_VALUES}")
    for name, value in config.items():
        if isinstance(value, Schedule):
            value.check(f'{field}["{name}"].schedule.{_FIELDS[type(value)]}', last)
        elif isinstance(value, float):
            _check_finite(f'{field}["{name}"].double_value', value)


def check_size(field: str, config: Config, client_config: Mapping[str, Config]) -> None:
    """Checks that the configuration of a training is not too large altogether.

    Raises:
        FieldInvalid: It has more than MAX_CONFIG_BYTES.
    """
    size = size_bytes(config) + sum(48 + size_bytes(one) for one in client_config.values())
    if size > MAX_CONFIG_BYTES:
        raise FieldInvalid(field, f"has {size} bytes with the values of all participants; at most {MAX_CONFIG_BYTES}")


def size_bytes(config: Config) -> int:
    """Returns an upper bound of the bytes of a configuration in a message."""
    return sum(12 + len(name.encode()) + _value_bytes(value) for name, value in config.items())


def _value_bytes(value: ConfigValue) -> int:
    match value:
        case str():
            return 8 + len(value.encode())
        case StepSchedule():
            return 12 + 24 * len(value.steps)
        case ExponentialSchedule() | CosineSchedule():
            return 48
        case _:
            return 12


def _check_finite(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise FieldInvalid(field, f"is {value}; must be a finite number")


_FIELDS: Mapping[type, str] = {
    StepSchedule: "steps",
    ExponentialSchedule: "exponential",
    CosineSchedule: "cosine",
}
