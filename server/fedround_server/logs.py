"""Configures logging to stderr, as text or JSON, for structlog and the standard library's loggers."""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, TextIO

import structlog

from fedround_server.domain.token import redact

STDERR = 2
KNOWN_LINE = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\S+ +\d+ (.*)|(error): (.*)")
"""A line of C code as abseil writes it, E0000 00:00:1764446400.1 12 file.cc:1] text, or one of `__main__`."""
LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL, "error": logging.ERROR}
TRACEBACK = {"stack", "exception", "exc_info"}
QUOTED = frozenset(" \t=\r\n\"'")
"""A text with one of these is shown in quotes."""
LEVEL_WIDTH, EVENT_WIDTH = 9, 30
FLUSH_SECONDS = 2.0
"""How long the last lines of stderr may take at the end: a worker process may hold it open."""

log = logging.getLogger("stderr")


def set_up(log_format: str, log_level: str, stream: TextIO | None = None) -> None:
    """Configures logging for the process.

    Args:
        log_format: "console" or "json".
        log_level: Name of the lowest level that is written.
        stream: Where to; None for stderr.
    """
    logging.captureWarnings(True)
    handler = logging.StreamHandler(stream or sys.stderr)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_replica,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[structlog.types.Processor] = []
    if log_format == "json":
        # Without locals: they contain tokens, and whole models.
        without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ending += [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        colors = sys.stderr.isatty()
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
        ending.append(renderer if colors else PlainRenderer(renderer))
    ending.append(_redacted)
    lowest = logging.getLevelNamesMapping()[log_level.upper()]
    structlog.configure(
        processors=[*shared, *ending],
        logger_factory=lambda name: LineWriter(name, handler),
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        cache_logger_on_first_use=True,
    )
    # For the loggers of libraries.
    foreign = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=foreign, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=lowest, force=True)


def name_replica(name: Callable[[], str]) -> None:
    """Has all lines from now on carry the name of this server, unless it is empty."""
    global _replica
    _replica = name


def _with_replica(_logger: Any, _method: str, fields: structlog.types.EventDict) -> structlog.types.EventDict:
    if name := _replica():
        fields["replica"] = name
    return fields


def _no_name() -> str:
    return ""


_replica: Callable[[], str] = _no_name


class PlainRenderer:
    """Renders lines as structlog's renderer without colors does, in 5 us instead of 17: each call has a line."""

    def __init__(self, renderer: structlog.dev.ConsoleRenderer) -> None:
        """Makes it; the other renderer is for lines with a traceback."""
        self._renderer = renderer

    def __call__(self, logger: Any, method: str, fields: structlog.types.EventDict) -> str:
        """Returns a line: time, level, event, logger, and the other fields in the order of their names."""
        if not fields.keys().isdisjoint(TRACEBACK):
            return self._renderer(logger, method, fields)
        time, level, name = fields.pop("timestamp"), fields.pop("level"), fields.pop("logger")
        head = f"{time} [{level:{LEVEL_WIDTH}}] {fields.pop('event')!s:{EVENT_WIDTH}} [{name}]"
        return " ".join([head, *[f"{key}={_shown(fields[key])}" for key in sorted(fields)]]).rstrip(" ")


def _shown(value: object) -> str:
    return value if isinstance(value, str) and not QUOTED.intersection(value) else repr(value)


class LineWriter:
    """Writes the lines of one of our loggers as they are.

    Through a logger of the standard library, a line takes two records, a search for its caller and a second chain of
    processors: 40 us more of 80 to 100, for each call.
    """

    def __init__(self, name: str, handler: "logging.StreamHandler[TextIO]") -> None:
        """Makes the writer of a logger with a name; a handler of the standard library writes to the same stream."""
        self.name = name
        self._handler = handler

    def write(self, line: str) -> None:
        """Writes a line; one that cannot be written is lost, as with the standard library."""
        handler = self._handler
        with suppress(OSError, ValueError), handler.lock or nullcontext():
            handler.stream.write(line + "\n")
            handler.stream.flush()

    debug = info = warning = error = critical = write


def _redacted(_logger: Any, _method: str, line: Any) -> str:
    """Removes tokens from a line, wherever they come from: this is the last processor."""
    return redact(line)


@contextmanager
def capture_stderr() -> Iterator[TextIO]:
    """Logs each line that something else writes to stderr during the block, and exceptions that nobody catches.

    gRPC's C code, other libraries and worker processes write there, and Python itself.

    Yields:
        The real stderr, for the log.
    """
    # An error of the log itself would be written to stderr, and so to the log.
    logging.raiseExceptions = False
    sys.excepthook = _log_exception
    threading.excepthook = lambda args: _log_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()
    # Never closed: exceptions may be logged until the process ends.
    real = os.fdopen(os.dup(STDERR), "w", buffering=1)
    read, write = os.pipe()
    os.dup2(write, STDERR)
    os.close(write)
    reader = threading.Thread(target=_log_lines, args=(read,), name="stderr", daemon=True)
    reader.start()
    try:
        yield real
    finally:
        sys.stderr.flush()
        os.dup2(real.fileno(), STDERR)
        reader.join(FLUSH_SECONDS)


def _log_lines(read: int) -> None:
    with os.fdopen(read, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            if text := line.rstrip():
                known = KNOWN_LINE.fullmatch(text)
                level, event = [part for part in known.groups() if part is not None] if known else ("W", text)
                log.log(LEVELS[level], "%s", event)


def _log_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    log.error("uncaught exception", exc_info=(kind, error or kind(), trace))
