"""Retries with back-off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from tenacity.wait import wait_base

from fedround_client.errors import FedroundError, TooManyCalls
from fedround_client.logs import get_logger

logger = get_logger(__name__)

ATTEMPTS = 8
"""How many attempts of a transfer in a row may fail without a byte of progress."""

# With full jitter, so that many participants that lose the server at once do not come back at once; the same for those
# that the server told to wait.
BACKOFF: wait_base = wait_random_exponential(multiplier=0.5, max=30)
# What is repeated without an end goes on soon after a server is back, however long none was.
ENDLESS_BACKOFF: wait_base = wait_random_exponential(multiplier=0.5, max=10)


def is_transient(error: BaseException) -> bool:
    """Returns whether the call that raised the error may be repeated."""
    return isinstance(error, FedroundError) and error.transient


def is_rate_limited(error: BaseException) -> bool:
    """Returns whether the server rejected the call before it did anything, because there were too many calls."""
    return isinstance(error, TooManyCalls)


def retrying(attempts: int | None, sleep: Callable[[float], None], when: Callable[[BaseException], bool]) -> Retrying:
    """Returns the attempts of an operation, with back-off between them.

    Args:
        attempts: How many in a row may fail; None for any number. After progress, setting the attempt_number of the
            attempt's retry_state to 1 starts the count again.
        sleep: Sleeps for a number of seconds.
        when: Returns whether an error is worth another attempt.

    Returns:
        To be used as `for attempt in ...: with attempt: ...`. The last error is raised unchanged.
    """

    def stop(state: RetryCallState) -> bool:
        return attempts is not None and state.attempt_number >= attempts

    return Retrying(
        sleep=sleep,
        wait=partial(_wait, ENDLESS_BACKOFF if attempts is None else BACKOFF),
        stop=stop,
        before_sleep=_log_retry,
        retry=retry_if_exception(when),
        reraise=True,
    )


def _wait(backoff: wait_base, state: RetryCallState) -> float:
    """Returns the seconds that the server asked to wait, if it did, plus the random back-off."""
    error = None if state.outcome is None else state.outcome.exception()
    return backoff(state) + (getattr(error, "retry_after", None) or 0.0)


def _log_retry(state: RetryCallState) -> None:
    """Logs failed attempts with decreasing frequency: the 1st, 2nd, 4th, 8th, ... in a row."""
    number = state.attempt_number
    if number & (number - 1) == 0 and state.outcome is not None:
        times = f", {number} times in a row" if number > 1 else ""
        logger.warning("Trying again%s: %s", times, state.outcome.exception())
