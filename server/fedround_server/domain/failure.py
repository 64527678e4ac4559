"""Failures: what participants report instead of an update or a report."""

import re
from dataclasses import dataclass
from datetime import datetime

ABSENT = "ABSENT"
"""The reason of a participant that has no connection, which the server notices."""
PARTICIPANTS_FAILED = "PARTICIPANTS_FAILED"
"""The reason with which a training ends in which too many participants have failed."""
REASON = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
MAX_MESSAGE = 1000
"""How many characters of a message are stored."""
MAX_SUMMARY = 200
"""How many characters of a message are part of the message of a training that ended."""


@dataclass(frozen=True, slots=True)
class ParticipantFailure:
    """Why a round does not wait for a participant."""

    user_id: str
    name: str
    round: int
    reason: str
    message: str
    time: datetime

    @property
    def summary(self) -> str:
        """The name with the reason, for the actor."""
        message = self.message if len(self.message) <= MAX_SUMMARY else f"{self.message[:MAX_SUMMARY]}..."
        return f"{self.name} ({self.reason}: {message})" if message else f"{self.name} ({self.reason})"


def printable(message: str) -> str:
    """Returns a message as it is stored: cut, and with spaces in place of control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in message[:MAX_MESSAGE])
