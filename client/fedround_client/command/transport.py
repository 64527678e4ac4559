"""Options of `fedround training create` about the precision in which participants send updates."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, TypeAlias

import typer

from fedround.v1.aggregation_pb2 import (
    UPDATE_PRECISION_FULL,
    UPDATE_PRECISION_UNSPECIFIED,
    TensorPrecision,
    UpdatePrecision,
)
from fedround.v1.training_pb2 import TrainingSpec
from fedround_client.command.output import enum_name
from fedround_client.transport import PrecisionName


class PrecisionChoice(StrEnum):
    """In which precision participants send updates."""

    FULL = "FULL"
    FLOAT16 = "FLOAT16"
    BFLOAT16 = "BFLOAT16"
    INT8 = "INT8"


PrecisionOption: TypeAlias = Annotated[
    PrecisionChoice,
    typer.Option(
        case_sensitive=False,
        help="Precision in which participants send updates: FLOAT16 and BFLOAT16 save half of the bytes of float32,"
        " INT8 three quarters.",
    ),
]
TensorPrecisionOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB=PRECISION",
        help="Precision of the tensors with matching names, such as '*.bias=FULL' or 'encoder.*=INT8'; repeat for more."
        " The first that matches applies, --update-precision to the others.",
    ),
]
StochasticRoundingOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--stochastic-rounding",
        help="Participants round what they send at random, with exact expected values, not to the nearest number.",
    ),
]


def precisions_text(spec: TrainingSpec) -> str:
    """Returns the precisions of a training's updates for people; empty if all tensors are sent in full."""
    rules = [f"{rule.tensors} {_text(rule)}" for rule in spec.tensor_precisions]
    default = TensorPrecision(precision=spec.update_precision, stochastic_rounding=spec.stochastic_rounding)
    if not rules and spec.update_precision in (UPDATE_PRECISION_UNSPECIFIED, UPDATE_PRECISION_FULL):
        return ""
    return ", ".join([*rules, f"others {_text(default)}" if rules else _text(default)])


def _text(rule: TensorPrecision) -> str:
    name = enum_name(UpdatePrecision, rule.precision)
    return f"{name} (stochastic rounding)" if rule.stochastic_rounding else name


def parse_tensor_precisions(texts: Iterable[str]) -> dict[str, PrecisionName]:
    """Parses precisions by glob.

    Raises:
        typer.BadParameter: A text is no glob and precision, or a glob is given twice.
    """
    rules: dict[str, PrecisionName] = {}
    names: dict[str, PrecisionName] = {"FULL": "FULL", "FLOAT16": "FLOAT16", "BFLOAT16": "BFLOAT16", "INT8": "INT8"}
    for text in texts:
        glob, _, name = text.rpartition("=")
        precision = names.get(name.upper())
        if not glob or precision is None:
            raise typer.BadParameter(
                f"--tensor-precision {text!r} is not GLOB=PRECISION, such as '*.bias=FULL'; precisions are"
                f" {', '.join(names)}"
            )
        if glob in rules:
            raise typer.BadParameter(f"--tensor-precision has {glob!r} twice: only the first would apply")
        rules[glob] = precision
    return rules
