"""What the log lines of a piece of work have in common, beside those of calls."""

import structlog


def begin_work(training_id: str, **values: object) -> None:
    """Binds the lines of a background task to a training; it has inherited the context of the call that started it."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(training_id=training_id, **values)
