"""Looks for NaN and Inf in small files, in the server's own process: to ask a worker would take longer."""

from typing import TYPE_CHECKING, Any

from fedround_server.domain.model import Dtype
from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.format.runs import runs

if TYPE_CHECKING:
    import numpy as np

SMALL = 1 << 20
"""Size of a small file in bytes, at most."""
NUMPY_DTYPES = {Dtype.F64: "<f8", Dtype.F32: "<f4", Dtype.F16: "<f2", Dtype.C64: "<f4"}
BITS = {Dtype.BF16: ("<u2", 0x7F80), Dtype.F8_E4M3: ("u1", 0x7F), Dtype.F8_E5M2: ("u1", 0x7C)}
"""Of types that numpy does not have, an integer type, and the bits that are set in NaN and Inf alone."""


def find_not_finite(layout: Layout, data: bytes) -> str | None:
    """Returns the name of a tensor that has NaN or Inf; None if all numbers are finite.

    Args:
        layout: What the file's header says.
        data: The whole file.
    """
    for run in runs(layout):
        if run.dtype.is_floating and run.num_numbers:
            is_bad = _not_finite(run.dtype, data, layout.offsets[run.first], run.num_numbers)
            if is_bad.any():
                return run.owner(int(is_bad.argmax()))
    return None


def _not_finite(dtype: Dtype, data: bytes, offset: int, count: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Returns which of the numbers from an offset on are NaN or Inf."""
    # Not with the server, which needs it only when a file arrives.
    import numpy as np

    if dtype in BITS:
        name, bits = BITS[dtype]
        return np.equal(np.frombuffer(data, name, count, offset) & bits, bits)
    return np.logical_not(np.isfinite(np.frombuffer(data, NUMPY_DTYPES[dtype], count, offset)))
