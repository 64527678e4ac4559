"""Configurations on the command line: NAME=VALUE, and for one participant CLIENT:NAME=VALUE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import typer

from fedround.v1.config_pb2 import (
    Config,
    ConfigValue,
    CosineSchedule,
    ExponentialSchedule,
    Schedule,
    Step,
    StepSchedule,
)
from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.config import ConfigOption

VALUE_HELP = (
    "VALUE is true, false, a number, a text, or a schedule: steps:ROUND:VALUE,..., exponential:START,FACTOR[,EVERY"
    "[,MINIMUM]] or cosine:START,END,ROUNDS[,WARMUP]; string:TEXT is always a text."
)
ConfigOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--config", metavar="NAME=VALUE", help=f"What participants get with each round; repeat for more. {VALUE_HELP}"
    ),
]
ClientConfigOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--client-config",
        metavar="CLIENT:NAME=VALUE",
        help="The same for one participant, by its name or id; repeat for more.",
    ),
]

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def parse(texts: Iterable[str]) -> dict[str, ConfigOption]:
    """Parses NAME=VALUE for several names.

    Raises:
        typer.BadParameter: A text has another form, a schedule is not valid, or a name comes twice.
    """
    return {name: _given(name, value) for name, value in parse_changes(texts).items()}


def parse_changes(texts: Iterable[str]) -> dict[str, ConfigOption | None]:
    """Parses NAME=VALUE as `parse` does; a name with an empty value is None, and is to be removed."""
    found: dict[str, ConfigOption | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as learning_rate=0.1")
        if name in found:
            raise typer.BadParameter(f"{name!r} has two values: give one")
        found[name] = _parse_value(name, value) if value else None
    return found


def parse_clients(client: Client, texts: Iterable[str]) -> dict[str, dict[str, ConfigOption]]:
    """Parses CLIENT:NAME=VALUE for several participants; returns their values by user id; raises as `parse` does."""
    return {
        user_id: {name: _given(name, value) for name, value in own.items()}
        for user_id, own in parse_client_changes(client, texts).items()
    }


def parse_client_changes(client: Client, texts: Iterable[str]) -> dict[str, dict[str, ConfigOption | None]]:
    """Parses CLIENT:NAME=VALUE as `parse_clients` does; a name with an empty value is None, and is to be removed."""
    by_client: dict[str, list[str]] = {}
    for text in texts:
        who, equals, value = text.partition("=")
        user, colon, name = who.rpartition(":")
        if not equals or not colon or not user:
            raise typer.BadParameter(f"{text!r} is not CLIENT:NAME=VALUE, such as site1:learning_rate=0.1")
        by_client.setdefault(user, []).append(f"{name}={value}")
    own = {user: parse_changes(values) for user, values in by_client.items()}
    found: dict[str, dict[str, ConfigOption | None]] = {}
    for user, values in own.items():
        (user_id,) = names.user_ids(client, [user])
        found.setdefault(user_id, {}).update(values)
    return found


def _given(name: str, value: ConfigOption | None) -> ConfigOption:
    if value is None:
        raise typer.BadParameter(f"{name!r} has no value; an empty text is {name}=string:")
    return value


def config_text(config: Mapping[str, ConfigValue]) -> str:
    """Returns a configuration in words, with values as they are written on the command line."""
    return ", ".join(f"{name} {_text(value)}" for name, value in sorted(config.items()))


def client_config_text(config: Mapping[str, Config], user_names: Mapping[str, str]) -> str:
    """Returns the configurations of single participants in words, with their names."""
    known = {user_names.get(user_id, user_id): config_text(own.values) for user_id, own in config.items()}
    return "; ".join(f"{name}: {text}" for name, text in sorted(known.items()))


def _parse_value(name: str, text: str) -> ConfigOption:
    kind, colon, rest = text.partition(":")
    if colon and kind in _KINDS:
        try:
            return _KINDS[kind](rest)
        except (ValueError, TypeError):
            raise typer.BadParameter(f"{name}={text} is not {_FORMS[kind]}") from None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _steps(text: str) -> StepSchedule:
    pairs = [pair.split(":") for pair in text.split(",")]
    return StepSchedule(steps=[Step(round=int(number), value=float(value)) for number, value in pairs])


def _exponential(text: str) -> ExponentialSchedule:
    start, factor, *more = text.split(",")
    every, minimum = [*more, None, None][:2] if len(more) <= 2 else _too_many()
    return ExponentialSchedule(
        start=float(start),
        factor=float(factor),
        every=1 if every is None else int(every),
        minimum=None if minimum is None else float(minimum),
    )


def _cosine(text: str) -> CosineSchedule:
    start, end, rounds, *more = text.split(",")
    (warmup,) = more or ["0"]
    return CosineSchedule(start=float(start), end=float(end), rounds=int(rounds), warmup_rounds=int(warmup))


def _too_many() -> list[str | None]:
    raise ValueError("too many numbers")


_KINDS: Mapping[str, Callable[[str], ConfigOption]] = {
    "string": str,
    "steps": _steps,
    "exponential": _exponential,
    "cosine": _cosine,
}
_FORMS = {
    "string": "string:TEXT",
    "steps": "steps:ROUND:VALUE,ROUND:VALUE,..., such as steps:0:0.1,30:0.01",
    "exponential": "exponential:START,FACTOR[,EVERY[,MINIMUM]], such as exponential:0.1,0.5,10",
    "cosine": "cosine:START,END,ROUNDS[,WARMUP], such as cosine:0.1,0.001,50",
}


def _text(value: ConfigValue) -> str:
    kind = value.WhichOneof("value")
    if kind == "schedule":
        return _schedule_text(value.schedule)
    if kind == "bool_value":
        return str(value.bool_value).lower()
    return str(getattr(value, kind)) if kind else "of a newer server"


def _schedule_text(schedule: Schedule) -> str:
    match schedule.WhichOneof("kind"):
        case "steps":
            return "steps:" + ",".join(f"{step.round}:{step.value:g}" for step in schedule.steps.steps)
        case "exponential":
            one = schedule.exponential
            minimum = f",{one.minimum:g}" if one.HasField("minimum") else ""
            return f"exponential:{one.start:g},{one.factor:g},{one.every}{minimum}"
        case "cosine":
            cosine = schedule.cosine
            warmup = f",{cosine.warmup_rounds}" if cosine.warmup_rounds else ""
            return f"cosine:{cosine.start:g},{cosine.end:g},{cosine.rounds}{warmup}"
        case _:
            return "of a newer server"
