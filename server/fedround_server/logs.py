"""Configures logging to stderr, as text or JSON, for structlog and the standard library's loggers."""

import logging
import sys
from typing import Any

import structlog

from fedround_server.domain.token import redact


def set_up(log_format: str, log_level: str) -> None:
    """Configures logging for the process: in the format "console" or "json", from the lowest level that is written."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_json = log_format == "json"
    ending: list[structlog.types.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        # Without locals: they contain tokens, and whole models.
        without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ending += [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        ending.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    ending.append(_redacted)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=ending, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=log_level.upper(), force=True)


def _redacted(_logger: Any, _method: str, line: Any) -> str:
    """Removes tokens from a line, wherever they come from: this is the last processor."""
    return redact(line)
