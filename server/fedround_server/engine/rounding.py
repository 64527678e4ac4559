"""Rounds aggregates to the dtypes of models."""

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# A float64 significand without these bits has 13: two more than float16 has, five more than bfloat16.
CUT = (1 << 40) - 1


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds float64 to a floating dtype: once, to nearest, ties to even.

    torch takes float64 to half precision by way of float32, which rounds twice. So values are rounded to odd first: cut
    to bits that float32 holds, the last of which also says whether something was cut. What lies next to a tie then
    does not become one (Boldo and Melquiond, IEEE Transactions on Computers 57(4), 2008).
    """
    if dtype not in HALVES:
        return values.to(dtype)
    bits = values.view(torch.int64)
    # The sum carries into the lowest bit that stays if anything is cut.
    odd = bits.bitwise_and(CUT).add_(CUT).bitwise_or_(bits).bitwise_and_(~CUT)
    return odd.view(torch.float64).to(torch.float32).to(dtype)
