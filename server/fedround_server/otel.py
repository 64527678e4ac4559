"""Traces by OpenTelemetry (the extra `otel`), exported over OTLP as the OTEL_* environment variables say."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextvars import Token
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fedround_server.traces import Span, Traces

log = logging.getLogger(__name__)
MAX_KEPT = 20_000
"""Of how many updates that are not aggregated yet the spans are kept; some 500 bytes each."""
CLOSE_SECONDS = 3.0
"""How long the last spans may take at the end: the collector may be gone."""


class OtelTraces(Traces):
    """Records spans, and sends them from a thread of its own. Make it after the worker processes."""

    is_on = True

    def __init__(self, version: str) -> None:
        """Begins.

        Raises:
            ValueError: An OTEL_* variable cannot be used.
        """
        # Those of the environment win.
        ours = Resource.create({"service.name": "fedround", "service.version": version})
        resource = ours.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("fedround", version)
        self._propagator = TraceContextTextMapPropagator()
        self._kept: OrderedDict[str, SpanContext] = OrderedDict()

    def call(self, method: str, traceparent: str) -> Span:
        """Returns the span of a call."""
        service, _, name = method[1:].rpartition("/")
        parent = self._propagator.extract({"traceparent": traceparent}, Context())
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        return _OtelSpan(self._tracer.start_span(method[1:], parent, SpanKind.SERVER, attributes))

    def span(self, name: str) -> Span:
        """Returns a span that is a part of the present one."""
        return _OtelSpan(self._tracer.start_span(name))

    def aggregation(self, update_ids: Iterable[str]) -> Span:
        """Returns the span of an aggregation, in a trace of its own."""
        links = [Link(self._kept[update_id]) for update_id in update_ids if update_id in self._kept]
        return _OtelSpan(self._tracer.start_span("aggregation", Context(), links=links))

    def add(self, name: str, start: int, end: int) -> None:
        """Adds a part of the present span that is over."""
        self._tracer.start_span(name, start_time=start).end(end)

    def annotate(self, name: str, value: str | int) -> None:
        """Sets an attribute of the present span."""
        trace.get_current_span().set_attribute(f"fedround.{name}", value)

    def keep(self, update_id: str) -> None:
        """Keeps the present span, in place of the oldest one if there are too many."""
        self._kept[update_id] = trace.get_current_span().get_span_context()
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def forget(self, update_ids: Iterable[str]) -> None:
        """Forgets spans of updates that are aggregated."""
        for update_id in update_ids:
            self._kept.pop(update_id, None)

    def close(self) -> None:
        """Sends what is left, for some seconds at most."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)
        if sending.is_alive():
            log.warning("traces: the collector does not answer: the last spans are lost")
            # It would say twice what this says.
            logging.getLogger("opentelemetry").setLevel(logging.ERROR)
            self._exporter.shutdown()
            sending.join(CLOSE_SECONDS)


class _OtelSpan(Span):
    """A span that is recorded."""

    __slots__ = ("_span", "_token", "trace_id")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Token[Context] | None = None
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def __enter__(self) -> Self:
        self._token = attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if self._token is not None:
            detach(self._token)
        if kind is not None:
            # Not the text: it may quote what a caller sent.
            self.set("reason", str(getattr(error, "reason", kind.__name__)))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def set(self, name: str, value: str | int) -> None:
        self._span.set_attribute(f"fedround.{name}", value)

    def set_code(self, code: int) -> None:
        self._span.set_attribute("rpc.grpc.status_code", code)
