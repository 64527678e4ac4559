"""In which precision an update has each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from fedround.v1 import aggregation_pb2
from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_UNSPECIFIED, UpdatePrecision
from fedround.v1.event_pb2 import RoundStarted

PrecisionName: TypeAlias = Literal["FULL", "FLOAT16", "BFLOAT16", "INT8"]

INT8_BLOCK = 256
"""How many int8 differences share a scale by default."""
MAX_BLOCK = 1 << 16
"""How many may share one."""


@dataclass(frozen=True)
class TensorPrecision:
    """In which precision participants send some tensors.

    Attributes:
        precision: "FULL", or that of the differences from the round's model: "FLOAT16", "BFLOAT16" or "INT8".
        stochastic_rounding: Round at random, with exact expected values, and not to the nearest; None for what the
            training says for all.
        block_size: With "INT8", how many numbers share a scale: a power of two from 16 to 65,536; 0 for 256.
    """

    precision: PrecisionName
    stochastic_rounding: bool | None = None
    block_size: int = 0


PrecisionOption: TypeAlias = PrecisionName | TensorPrecision
"""A precision with its defaults by its name, or with options."""


@dataclass(frozen=True)
class Transport:
    """The precisions of all tensors of an update.

    Attributes:
        default: Those of tensors that no glob matches.
        rules: Precisions by globs of the names of tensors; the first that matches applies.
    """

    default: TensorPrecision = TensorPrecision("FULL")
    rules: Mapping[str, TensorPrecision] = field(default_factory=dict)

    @classmethod
    def of(cls, started: RoundStarted) -> Transport:
        """Returns the precisions of a round; all FULL if this SDK does not know one of them."""
        default = _read(started.update_precision, started.stochastic_rounding, 0)
        rules: dict[str, TensorPrecision] = {}
        for one in started.tensor_precisions:
            rule = _read(one.precision, one.stochastic_rounding, one.block_size)
            if rule is None:
                return cls()
            rules.setdefault(one.tensors, rule)
        return cls() if default is None else cls(default, rules)

    @property
    def is_full(self) -> bool:
        """Whether all tensors are sent in full."""
        return all(one.precision == "FULL" for one in (self.default, *self.rules.values()))

    def of_tensor(self, name: str) -> TensorPrecision:
        """Returns the precision of a tensor of the dtypes float32 and float64; others are sent as they are."""
        return next((rule for glob, rule in self.rules.items() if fnmatchcase(name, glob)), self.default)


def precision_message(name: str) -> UpdatePrecision.ValueType:
    """Returns the message for a precision.

    Raises:
        ValueError: There is no such precision.
    """
    return UpdatePrecision.Value(f"UPDATE_PRECISION_{name}")


def rule_messages(
    rules: Mapping[str, PrecisionOption], *, stochastic_rounding: bool
) -> list[aggregation_pb2.TensorPrecision]:
    """Returns the messages for precisions by glob.

    Args:
        rules: The precisions.
        stochastic_rounding: Applies to those that say nothing about it.

    Raises:
        ValueError: There is no such precision.
    """
    messages = []
    for glob, option in rules.items():
        rule = option if isinstance(option, TensorPrecision) else TensorPrecision(option)
        chosen = stochastic_rounding if rule.stochastic_rounding is None else rule.stochastic_rounding
        messages.append(
            aggregation_pb2.TensorPrecision(
                tensors=glob,
                precision=precision_message(rule.precision),
                stochastic_rounding=chosen,
                block_size=rule.block_size,
            )
        )
    return messages


def _read(value: UpdatePrecision.ValueType, stochastic_rounding: bool, block_size: int) -> TensorPrecision | None:
    names: Mapping[int, PrecisionName] = {
        UPDATE_PRECISION_UNSPECIFIED: "FULL",
        aggregation_pb2.UPDATE_PRECISION_FULL: "FULL",
        aggregation_pb2.UPDATE_PRECISION_FLOAT16: "FLOAT16",
        aggregation_pb2.UPDATE_PRECISION_BFLOAT16: "BFLOAT16",
        aggregation_pb2.UPDATE_PRECISION_INT8: "INT8",
    }
    name = names.get(value)
    if name is None or (block_size and not (block_size <= MAX_BLOCK and block_size.bit_count() == 1)):
        return None
    return TensorPrecision(name, stochastic_rounding, block_size)
