"""Rounds aggregates to the dtypes of models."""

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds float64 to a floating dtype: once, to nearest, ties to even.

    torch takes float64 to half precision by way of float32, which rounds twice. Rounded to odd on the way, values next
    to a tie don't become one (Boldo and Melquiond, IEEE Transactions on Computers 57(4), 2008).
    """
    if dtype not in HALVES:
        return values.to(dtype)
    nearest = values.to(torch.float32)
    back = nearest.to(torch.float64)
    bits = nearest.view(torch.int32)
    # Toward zero where it went away from zero; then the last bit tells that something was cut.
    bits.sub_((back.abs() > values.abs()).to(torch.int32)).bitwise_or_((back != values).to(torch.int32))
    return nearest.to(dtype)
