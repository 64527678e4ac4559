"""Traces of what a client does, with the tracer that the program has set up for OpenTelemetry.

OpenTelemetry is imported only if a client asks for traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class Traces:
    """Makes no spans: what a client has by default."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """Returns the context of a piece of work, as a part of the present one; an error that leaves it is recorded."""
        return _NOTHING

    def set(self, name: str, value: str | int) -> None:
        """Sets an attribute of the present span: an id, a name of ours, a number of bytes."""

    def event(self, name: str, offset: int) -> None:
        """Adds an event to the present span, at an offset in bytes."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata that tell the server of the present span."""
        return ()


_NOTHING = nullcontext()
NO_TRACES = Traces()


class OtelTraces(Traces):
    """Makes spans with the global tracer provider of OpenTelemetry."""

    def __init__(self) -> None:
        """Imports OpenTelemetry.

        Raises:
            ImportError: It is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ImportError('traces need OpenTelemetry: pip install "fedround[otel]"', name=error.name) from error
        self._api = trace
        self._tracer = trace.get_tracer("fedround")
        self._propagator = TraceContextTextMapPropagator()

    def span(self, name: str) -> AbstractContextManager[object]:
        """Returns the context of a piece of work. Of an error it has the type or the reason, and not the text."""
        return self._work(name)

    @contextmanager
    def _work(self, name: str) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("fedround.reason", str(getattr(error, "reason", type(error).__name__)))
                span.set_status(self._api.StatusCode.ERROR)
                raise

    def set(self, name: str, value: str | int) -> None:
        """Sets an attribute of the present span."""
        self._api.get_current_span().set_attribute(f"fedround.{name}", value)

    def event(self, name: str, offset: int) -> None:
        """Adds an event to the present span."""
        self._api.get_current_span().add_event(name, {"fedround.offset": offset})

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Returns traceparent and tracestate, in W3C's format; nothing without a span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return tuple(carrier.items())
