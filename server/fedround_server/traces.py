"""Traces: where the time of a call and of an aggregation goes. A server makes none unless the setting `traces` is on.

A call of a server without traces makes no object here: `NO_TRACES` gives all callers the same span, which does nothing.
"""

from collections.abc import Iterable
from typing import Self


class Span:
    """A piece of work, which lasts as long as its `with` block; this one is not recorded."""

    __slots__ = ()

    trace_id = ""
    """32 hexadecimal digits; empty if it is not recorded."""

    def __enter__(self) -> Self:
        """Begins the work, as a part of the present span."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        """Ends the work; an error that leaves the block is recorded by its reason, without its text."""

    def set(self, name: str, value: str | int) -> None:
        """Sets an attribute: an id, a name of ours, a number of bytes; never a name of a user, a token or a metric."""

    def set_code(self, code: int) -> None:
        """Sets the number of the status with which a call ends."""


NO_SPAN = Span()


class Traces:
    """Makes spans; this one makes none."""

    is_on = False

    def call(self, method: str, traceparent: str) -> Span:
        """Returns the span of a call, /package.Service/Method, as a part of the caller's if that is known."""
        return NO_SPAN

    def span(self, name: str) -> Span:
        """Returns a span that is a part of the present one."""
        return NO_SPAN

    def aggregation(self, update_ids: Iterable[str]) -> Span:
        """Returns the span of an aggregation, which is linked to those in which its updates were accepted."""
        return NO_SPAN

    def add(self, name: str, start: int, end: int) -> None:
        """Adds a part of the present span that is over; times in nanoseconds since 1970."""

    def annotate(self, name: str, value: str | int) -> None:
        """Sets an attribute of the present span."""

    def keep(self, update_id: str) -> None:
        """Keeps the present span as the one in which an update was accepted."""

    def forget(self, update_ids: Iterable[str]) -> None:
        """Forgets spans of updates that are aggregated."""

    def close(self) -> None:
        """Sends what is left; the server has stopped serving."""


NO_TRACES = Traces()
