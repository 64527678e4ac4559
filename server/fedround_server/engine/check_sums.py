"""Checks that the numbers of a partial sum can be a sum of updates, before it is accepted."""

from pathlib import Path

import torch

from fedround_server.domain.model import Dtype
from fedround_server.engine.double import LARGE
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.format.tensors import TensorFile, blocks
from fedround_server.engine.jobs import CheckResult, SumCheck
from fedround_server.engine.parts import TOLERANCE

UNIT = 149
"""All numbers of updates are multiples of 2^-149, the smallest float32 number, unless they are float64."""


def check_sums(path: Path, expected: SumCheck) -> CheckResult:
    """Looks for components that no sum of numbers of the model's types has.

    All others can be added: between 2^-149 and the largest sum of float32 numbers, 2^181, there is room for seven
    components. Of float64 numbers, only the size is checked.

    Args:
        path: A safetensors file with the tensors of a partial sum, all finite.
        expected: What it is the sum of.
    """
    with TensorFile(path) as file:
        for name, dtype in expected.dtypes.items():
            largest = torch.finfo(TORCH_DTYPES[dtype]).max * expected.num_examples
            for start, length in blocks(file.layout.manifest[name].num_numbers):
                block = file.block(name, start, length)
                found = float(block.abs().max())
                if found > largest * (1 + TOLERANCE):
                    return CheckResult(
                        problem=f"tensor {name!r} has the component {found:g}, and {expected.num_examples} times the"
                        f" largest number of {dtype.name} is {largest:g}"
                    )
                if dtype is Dtype.F64:
                    if found >= LARGE:
                        return CheckResult(
                            problem=f"tensor {name!r} has the component {found:g}; 2^960 and more cannot be added"
                        )
                    continue
                scaled = block * 2.0**UNIT
                if not torch.equal(scaled, scaled.trunc()):
                    return CheckResult(
                        problem=f"tensor {name!r} has components that are no multiples of 2^-{UNIT}, as all numbers of"
                        f" {dtype.name} and their sums are"
                    )
    return CheckResult()
