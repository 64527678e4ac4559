"""Updates in the floating-point dtypes of the model, whatever width the training produced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fedround_client.float8 import FLOAT8, from_float8, round_to_float8
from fedround_client.half_precision import round_to_half
from fedround_client.logs import get_logger
from fedround_client.safetensors_header import DTYPE_NAMES, TensorInfo
from fedround_client.safetensors_stream import ArraySource
from fedround_client.tensor_types import TensorError

logger = get_logger(__name__)

_NUMPY: Mapping[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_FLOATING = frozenset({*_NUMPY, "BF16", *FLOAT8})


class Caster:
    """Casts the tensors of a participant's updates, and warns once."""

    def __init__(self) -> None:
        """Creates a caster that has not warned."""
        self._has_warned = False

    def cast(self, update: Iterable[ArraySource], dtypes: Mapping[str, str]) -> list[ArraySource]:
        """Returns the tensors of an update with the floating-point dtypes that the model has.

        Args:
            update: The tensors.
            dtypes: The dtypes of the model's tensors, by name. Those that are no real floating-point numbers are
                left as they are.

        Returns:
            The tensors. Reading one raises TensorError if the model's dtype cannot hold a value.
        """
        sources, names = [], []
        for source in update:
            info, wanted = source.info, dtypes.get(source.info.name, source.info.dtype)
            if info.dtype != wanted and {info.dtype, wanted} <= _FLOATING:
                names.append(f"{info.name!r} from {DTYPE_NAMES[info.dtype]} to {DTYPE_NAMES[wanted]}")
                sources.append(ArraySource(TensorInfo(info.name, wanted, info.shape), _casting(source, wanted)))
            else:
                sources.append(source)
        if names and not self._has_warned:
            self._has_warned = True
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            logger.warning(
                "The update is cast to the dtypes of the model: tensor %s. numpy computes float32 with float64 in"
                " float64; .astype(np.float32), or .to(torch.float32), keeps the dtype. This is logged once.",
                f"{names[0]}{more}",
            )
        return sources


def _casting(source: ArraySource, dtype: str) -> Callable[[], memoryview]:
    return lambda: _cast(source, dtype).reshape(-1).view(np.uint8).data


def read_numbers(source: ArraySource) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns the numbers of a floating tensor as float64, flat; a complex one has two for each element."""
    return _values(source).astype(np.float64)


def _values(source: ArraySource) -> np.ndarray[Any, np.dtype[Any]]:
    data, dtype = source.memory(), source.info.dtype
    if dtype == "BF16":
        # The upper halves of float32.
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if dtype in FLOAT8:
        return from_float8(data, dtype)
    return np.frombuffer(data, "<f4" if dtype == "C64" else _NUMPY[dtype])


def _cast(source: ArraySource, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    values = _values(source)
    # Overflow is found by its result.
    with np.errstate(over="ignore", invalid="ignore"):
        # The others are rounded from float32.
        narrow = values.astype(_NUMPY.get(dtype, "<f4"))
        result: np.ndarray[Any, np.dtype[Any]] | None = narrow
        if (np.isfinite(narrow) != np.isfinite(values)).any():
            result = None
        elif dtype in FLOAT8:
            result = round_to_float8(narrow, dtype)
        elif dtype == "BF16":
            result = _to_bfloat16(narrow)
    if result is None:
        raise TensorError(
            f"Tensor {source.info.name!r} has {DTYPE_NAMES[source.info.dtype]} numbers that the model's dtype,"
            f" {DTYPE_NAMES[dtype]}, cannot hold."
        )
    return result


def _to_bfloat16(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]] | None:
    special = ~np.isfinite(values)
    half = round_to_half(np.where(special, 0, values).astype("<f4"), "BF16")
    if half is not None:
        # A NaN keeps a bit of its fraction in the upper half.
        half[special] = (values.view("<u4") >> 16)[special] | np.where(np.isnan(values), 0x40, 0)[special]
    return half
