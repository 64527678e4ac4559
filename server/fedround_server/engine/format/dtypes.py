"""Numbers of the accepted types: their torch types, rounding to them, and whether they are finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedround_server.domain.model import Dtype

TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F8_E4M3: torch.float8_e4m3fn,
    Dtype.F8_E5M2: torch.float8_e5m2,
    # Complex numbers are processed as pairs of real ones.
    Dtype.C64: torch.float32,
    Dtype.I64: torch.int64,
    Dtype.I32: torch.int32,
    Dtype.I16: torch.int16,
    Dtype.I8: torch.int8,
    Dtype.U64: torch.uint64,
    Dtype.U32: torch.uint32,
    Dtype.U16: torch.uint16,
    Dtype.U8: torch.uint8,
    Dtype.BOOL: torch.bool,
}
EIGHTS = (torch.float8_e4m3fn, torch.float8_e5m2)
NARROW = (torch.float16, torch.bfloat16, *EIGHTS)
# A float64 significand without these bits has 13: two more than float16 has, five more than bfloat16.
CUT = (1 << 40) - 1


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds float64 to a floating dtype: once, to nearest, ties to even.

    torch converts float64 to narrower types than float32 by way of float32, which rounds twice. So values are rounded
    to odd first: truncated to bits that float32 holds, the last of which also records whether anything was cut off. A
    value next to a tie then does not become one (Boldo and Melquiond, IEEE Transactions on Computers 57(4), 2008).

    Args:
        values: Float64, any shape.
        dtype: A floating dtype.
    """
    if dtype not in NARROW:
        return values.to(dtype)
    bits = values.view(torch.int64)
    # The sum carries into the lowest bit that stays if anything is cut off.
    odd = bits.bitwise_and(CUT).add_(CUT).bitwise_or_(bits).bitwise_and_(~CUT)
    return odd.view(torch.float64).to(torch.float32).to(dtype)


def widen(block: Tensor) -> Tensor:
    """Returns a block of float8, with which torch cannot compute, in float32; any other block as it is."""
    return block.to(torch.float32) if block.dtype in EIGHTS else block


def is_finite(block: Tensor) -> bool:
    """Returns whether a block of a floating dtype has neither NaN nor Inf.

    Every sum that contains one of them is NaN or Inf, too, and a sum takes a tenth of the time of a test of each
    element. A sum may also overflow by itself: then each element is tested.
    """
    block = widen(block)
    return math.isfinite(float(block.sum())) or bool(torch.isfinite(block).all())


def first_not_finite(block: Tensor) -> int:
    """Returns the index of the first element that is NaN or Inf, of a flat block that has one."""
    return int(torch.isfinite(widen(block)).logical_not_().nonzero()[0])
