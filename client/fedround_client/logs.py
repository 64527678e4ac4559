"""Loggers of the SDK: what a server says reaches no log, and no terminal, with control characters."""

from __future__ import annotations

import logging

from fedround_client.printable import one_line


class _Printable(logging.Filter):
    """Escapes control and format characters in the arguments of records; changes them and rejects none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replaces the arguments that are not numbers."""
        if isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, int | float) else one_line(arg) for arg in record.args)
        return True


_PRINTABLE = _Printable()


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module of the SDK; every module gets its logger here."""
    logger = logging.getLogger(name)
    # To each logger, since those above it do not filter its records.
    logger.addFilter(_PRINTABLE)
    return logger
