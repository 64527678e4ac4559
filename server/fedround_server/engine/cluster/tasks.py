"""What runs in Ray's workers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from fedround_server.blobs import BlobFiles
from fedround_server.engine import worker
from fedround_server.engine.jobs import AggregationJob
from fedround_server.engine.process import allow_many_files
from fedround_server.host.allocator import keep_freed_blocks

if TYPE_CHECKING:
    from fedround_server.engine.computation import Step
    from fedround_server.engine.source import Span

R = TypeVar("R")


def installed_version() -> str:
    """Returns the version of fedround on this node."""
    return version("fedround")


def run_range(files: BlobFiles, job: AggregationJob, step: Step[R], spans: Sequence[Span]) -> list[R]:
    """Computes a step of an aggregation for some spans.

    Raises:
        AggregationFailed: The model's dtype cannot hold an element.
        BlobDamaged: A file is not what was stored.
    """
    from fedround_server.engine.format.verification import reading_ahead
    from fedround_server.engine.source import open_source

    _prepare()
    with reading_ahead() as ahead, open_source(files, job, ahead) as source:
        return [step(source, span) for span in spans]


@cache
def _prepare() -> None:
    allow_many_files()
    keep_freed_blocks()
    worker.prepare()
