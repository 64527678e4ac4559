"""Looks for NaN and Inf in small files, in the server's own process: to ask a worker would take longer."""

from fedround_server.domain.model import Dtype
from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.format.runs import runs

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
            first = _first_not_finite(run.dtype, data, layout.offsets[run.first], run.num_numbers)
            if first is not None:
                return run.owner(first)
    return None


def _first_not_finite(dtype: Dtype, data: bytes, offset: int, count: int) -> int | None:
    """Returns the index of the first of the numbers from an offset on that is NaN or Inf; None if there is none."""
    # Not with the server, which needs it only when a file arrives.
    import numpy as np

    if dtype in BITS:
        name, bits = BITS[dtype]
        is_finite = np.frombuffer(data, name, count, offset) & bits != bits
    else:
        is_finite = np.isfinite(np.frombuffer(data, NUMPY_DTYPES[dtype], count, offset))
    return None if is_finite.all() else int(is_finite.argmin())
