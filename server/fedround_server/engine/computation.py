"""Computes the spans of an aggregation in threads of this process, or divided into ranges on other machines."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from fedround_server.engine.pool import Pool
from fedround_server.engine.source import Source, Span

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

RANGE_NUMBERS = 1 << 24
"""How many numbers of files a task reads, about: many enough that opening the files takes no part of its time."""


class Step(Protocol[R_co]):
    """A pure function of the files of an aggregation, which can be pickled."""

    def __call__(self, source: Source, span: Span) -> R_co:
        """Returns what it computes of a span."""


class Spread(Protocol):
    """Computes on other machines, in processes that open the files of the aggregation themselves."""

    def map(self, step: Step[R], ranges: Sequence[Sequence[Span]]) -> Iterator[R]:
        """Yields what a step makes of each span, in order.

        Args:
            step: The step.
            ranges: The spans, in order; each range is one task.
        """


@dataclass(frozen=True, slots=True)
class Computation:
    """Where the spans of an aggregation are computed.

    Attributes:
        source: The files of the aggregation.
        pool: The threads of this process.
        spread: Takes the place of the threads if there is more than one range; None for the threads alone.
    """

    source: Source
    pool: Pool
    spread: Spread | None

    def map(self, step: Step[R], spans: Iterable[Span]) -> Iterator[R]:
        """Yields what a step makes of each span, in order."""
        if self.spread is not None:
            spans = list(spans)
            ranges = divided(spans, RANGE_NUMBERS // (1 + len(self.source.counted)))
            if len(ranges) > 1:
                return self.spread.map(step, ranges)
        return self.pool.map(partial(step, self.source), spans)


def divided(spans: Iterable[Span], numbers: int) -> list[list[Span]]:
    """Divides spans into ranges with at least this many numbers, but for the last one."""
    ranges: list[list[Span]] = []
    count = numbers
    for span in spans:
        if count >= numbers:
            ranges.append([])
            count = 0
        ranges[-1].append(span)
        count += span.length
    return ranges
