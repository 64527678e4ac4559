"""Exit codes of the command; docs/command.md lists them."""

from __future__ import annotations

from enum import IntEnum

from fedround.v1.event_pb2 import Event
from fedround.v1.training_pb2 import TRAINING_STATE_ERROR, Training
from fedround_client.errors import TrainingFailed, TrainingRemoved

PRIVACY_BUDGET = "PRIVACY_BUDGET"
"""The reason of a training that its privacy budget has ended."""


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    """A training reached its target, or ended early because of the patience of its selection."""
    FAILED = 1
    USAGE = 2
    UNREADABLE_AUDIT_LOG = 3
    TRAINING_FAILED = 4
    TRAINING_STOPPED = 5
    BUDGET_SPENT = 6
    TRAINING_REMOVED = 7
    TIMED_OUT = 8


def code_of_training(training: Training) -> ExitCode:
    """Returns the code for a training that has ended."""
    if training.state == TRAINING_STATE_ERROR:
        return ExitCode.TRAINING_FAILED
    return _code(stopped=training.stopped, reason=training.error.reason)


def code_of_event(event: Event) -> ExitCode | None:
    """Returns the code for the event that ends a training; None for other events."""
    match event.WhichOneof("payload"):
        case "training_finished":
            return _code(stopped=event.training_finished.stopped, reason=event.training_finished.reason)
        case "training_failed":
            return ExitCode.TRAINING_FAILED
        case "training_removed":
            return ExitCode.TRAINING_REMOVED
    return None


def code_of_error(error: BaseException) -> ExitCode:
    """Returns the code for an exception that ends a command."""
    if isinstance(error, TrainingFailed):
        return ExitCode.TRAINING_FAILED
    if isinstance(error, TrainingRemoved):
        return ExitCode.TRAINING_REMOVED
    return ExitCode.TIMED_OUT if isinstance(error, TimeoutError) else ExitCode.FAILED


def _code(*, stopped: bool, reason: str) -> ExitCode:
    if stopped:
        return ExitCode.TRAINING_STOPPED
    return ExitCode.BUDGET_SPENT if reason == PRIVACY_BUDGET else ExitCode.DONE
