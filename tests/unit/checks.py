"""Checks of files as the worker makes them, given the paths of the models."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from fedround_server.domain.model import BlobRef
from fedround_server.engine import check
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.format.verification import Verifier
from fedround_server.engine.jobs import CheckResult


def check_numbers(
    path: Path,
    origin: Path | None = None,
    prefix: str = "",
    model: Path | None = None,
    origin_blob: BlobRef | None = None,
    block_sizes: Mapping[str, int] | None = None,
) -> CheckResult:
    """Checks a file against models."""
    with ExitStack() as stack:
        verifier = None if origin is None or origin_blob is None else Verifier(origin, origin_blob)
        opened = None if origin is None else stack.enter_context(TensorFile(origin, verifier=verifier))
        allowed = None if model is None else stack.enter_context(TensorFile(model))
        return check.check_numbers(path, opened, prefix, allowed, block_sizes or {})
