"""Log lines about what happens in trainings: one for each change, once it is committed. docs/logging.md lists them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import structlog

from fedround_server.domain.audit import AuditRecord
from fedround_server.traces import Traces

log = structlog.get_logger("fedround.training")
MAX_LINES = 5
"""How many changes of one kind a transaction may have for a line each; of more there is one line, with a number."""
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Line:
    """How a change is logged.

    Attributes:
        keys: The details of its record that the line has, where they are given.
        subject: What the subject of the record is.
        level: The level of the line.
    """

    keys: tuple[str, ...] = ()
    subject: str = ""
    level: str = "info"


_UPDATE = Line(("round", "participant_id", "size_bytes"), "update_id", "debug")
LINES: Mapping[str, Line] = {
    "training_created": Line(("target_num_updates",)),
    "clients_registered": Line(("user_ids",)),
    "client_removed": Line(subject="participant_id"),
    "training_started": Line(),
    "training_paused": Line(),
    "training_resumed": Line(),
    "stop_requested": Line(("when",)),
    "config_updated": Line(subject="round"),
    "round_opened": Line(("kind", "version", "members", "eligible", "deadline"), "round"),
    "round_extended": Line(("attempt", "arrived", "members", "deadline"), "round", "warning"),
    "update_accepted": _UPDATE,
    "report_accepted": _UPDATE,
    "participant_failed": Line(("round", "reason"), "participant_id"),
    "failure_withdrawn": Line(("round",), "participant_id"),
    "round_closed": Line(("arrived", "failed", "members"), "round"),
    "round_reopened": Line(subject="round", level="warning"),
    "round_abandoned": Line(subject="round"),
    "updates_superseded": Line(("update_ids", "reason"), "round"),
    "round_done": Line(("kind", "num_updates", "num_examples"), "round"),
    "version_made": Line(("round", "num_updates", "size_bytes"), "version"),
    "posterior_made": Line(("round", "num_updates", "size_bytes"), "version"),
    "training_completed": Line(("early", "stopped", "reason"), "version"),
    "training_failed": Line(("reason",), level="warning"),
    "training_removed": Line(),
}
"""By action of the audit log."""
NUMBERS = ("round", "version")


class ChangeLog:
    """Logs the records of verbs; the present version goes to the span in which it was committed, too."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def tell(self, records: Sequence[AuditRecord]) -> None:
        """Logs what a verb has changed."""
        for action, some in groupby(records, key=lambda record: record.action):
            line = LINES.get(action)
            if line is None:
                continue
            write: Callable[..., None] = getattr(log, line.level)
            for values in _lines(line, list(some)):
                write(action, **values)
                if action == "version_made":
                    self._traces.annotate("version", values["version"])


def _lines(line: Line, records: Sequence[AuditRecord]) -> Iterator[dict[str, Any]]:
    if len(records) <= MAX_LINES:
        for record in records:
            yield _values(line, record)
        return
    first = _values(line, records[0])
    subject = first.pop(line.subject, None)
    if isinstance(subject, str):
        first[f"{line.subject}s"] = [record.subject for record in records[:MAX_NAMED]]
    yield {**first, "count": len(records)}


def _values(line: Line, record: AuditRecord) -> dict[str, Any]:
    details = {**record.facts, **record.notes}
    values: dict[str, Any] = {"training_id": record.training_id}
    if line.subject:
        values[line.subject] = int(record.subject) if line.subject in NUMBERS else record.subject
    for key in line.keys:
        value = details.get(key)
        if isinstance(value, list | tuple):
            values["count"] = len(value)
            values[key] = list(value[:MAX_NAMED])
        elif isinstance(value, datetime):
            values[key] = value.isoformat(timespec="milliseconds")
        elif value is not None:
            values[key] = value
    return values
