"""How updates carry tensors: in full, or as differences from the round's model in a narrow type."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import MAX_NAME, MAX_TENSORS, Dtype, Manifest, TensorSpec
from fedround_server.domain.tensor_selection import check_globs

SCALES = ".int8_scales"
"""What follows the name of a tensor of int8 differences in the name of the tensor of their scales."""
WIDE = (Dtype.F32, Dtype.F64)
"""The types of the tensors that may come as differences."""
INT8_BLOCK = 256
"""How many int8 differences share a scale unless a rule says otherwise."""
INT8_LIMIT = 127
"""The largest int8 difference, and the largest negative one."""


class UpdatePrecision(enum.Enum):
    """How exactly updates say what was learned."""

    FULL = "FULL"
    FLOAT16 = "FLOAT16"
    BFLOAT16 = "BFLOAT16"
    INT8 = "INT8"

    @property
    def dtype(self) -> Dtype | None:
        """The type of differences; None if there are none."""
        return {"FLOAT16": Dtype.F16, "BFLOAT16": Dtype.BF16, "INT8": Dtype.I8}.get(self.value)


@dataclass(frozen=True, slots=True)
class TensorPrecision:
    """In which precision updates have some tensors.

    Attributes:
        tensors: A glob over their names.
        precision: The precision.
        stochastic_rounding: Whether participants are asked to round at random, with exact expected values.
        block_size: How many int8 differences share a scale; 0 for another precision.
    """

    tensors: str
    precision: UpdatePrecision
    stochastic_rounding: bool = False
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class Transport:
    """The precisions of all tensors of an update.

    Attributes:
        rules: The first rule that matches a tensor applies.
        precision: The precision of tensors that match none.
        stochastic_rounding: Whether participants are asked to round these tensors at random.
    """

    rules: tuple[TensorPrecision, ...] = ()
    precision: UpdatePrecision = UpdatePrecision.FULL
    stochastic_rounding: bool = False

    @property
    def is_full(self) -> bool:
        """Whether there are no differences: then no tensor has to be looked at, of which a model may have 20,000."""
        return not self.rules and self.precision is UpdatePrecision.FULL

    def encoded(self, model: Manifest) -> Manifest:
        """Returns the tensors of an update that has differences from these tensors of a model.

        A tensor that has another type than in the model is a difference.
        """
        if self.is_full:
            return model
        tensors: dict[str, TensorSpec] = {}
        for name, (precision, block_size) in self._precisions(model).items():
            spec, dtype = model[name], precision.dtype
            tensors[name] = spec if dtype is None else TensorSpec(dtype, spec.shape)
            if block_size:
                tensors[name + SCALES] = TensorSpec(Dtype.F32, (-(-spec.num_elements // block_size),))
        return tensors

    def block_sizes(self, model: Manifest) -> Mapping[str, int]:
        """Returns how many numbers share a scale in each tensor of int8 differences."""
        return {} if self.is_full else {name: size for name, (_, size) in self._precisions(model).items() if size}

    def check(self, model: Manifest) -> None:
        """Checks that the rules fit the tensors that updates have.

        Raises:
            FieldInvalid: A glob matches nothing, or the names of scales are not possible.
        """
        for number, rule in enumerate(self.rules):
            check_globs(f"spec.tensor_precisions[{number}].tensors", [rule.tensors], model)
        scaled = self.block_sizes(model)
        field = "spec.tensor_precisions" if self.rules else "spec.update_precision"
        for name in scaled:
            if name + SCALES in model:
                raise FieldInvalid(
                    field,
                    f"asks for tensor {name!r} in INT8, with scales named {name + SCALES!r}, which is a tensor of the"
                    " model: rename that, or choose another precision",
                )
            if len(name) + len(SCALES) > MAX_NAME:
                raise FieldInvalid(
                    field,
                    f"asks for tensor {name[:80]!r} in INT8, and its name with {SCALES!r} has more than {MAX_NAME}"
                    " characters: choose another precision",
                )
        if scaled and len(model) + len(scaled) > MAX_TENSORS:
            raise FieldInvalid(
                field,
                f"asks for {len(model) + len(scaled)} tensors with the scales of INT8, and a file may have"
                f" {MAX_TENSORS}: choose INT8 for fewer",
            )

    def _precisions(self, model: Manifest) -> dict[str, tuple[UpdatePrecision, int]]:
        """Returns the precision of each tensor, and how many int8 differences share a scale, or 0."""
        match = _pattern(tuple(rule.tensors for rule in self.rules)).match
        default = self.precision, INT8_BLOCK if self.precision is UpdatePrecision.INT8 else 0
        choices = [default, *((rule.precision, rule.block_size) for rule in self.rules)]
        found = {}
        for name, spec in model.items():
            matched = match(name)
            choice = choices[0 if matched is None else matched.lastindex or 0]
            found[name] = choice if spec.dtype in WIDE else (UpdatePrecision.FULL, 0)
        return found


FULL_TRANSPORT = Transport()
"""Updates have all tensors in full."""


@lru_cache(maxsize=128)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Returns a pattern whose last group is the first glob that matches, counted from 1."""
    # One pattern for all: a model may have 20,000 tensors. Without globs it matches nothing.
    return re.compile("|".join(f"({translate(glob)})" for glob in globs) or r"(?!)")
