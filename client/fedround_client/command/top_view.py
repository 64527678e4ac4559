"""What `fedround top` shows of a server: a screen that changes, or one line per interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fedround.v1.server_pb2 import DiskStatus, ServerStatus
from fedround.v1.training_pb2 import Training, TrainingState
from fedround_client.command.output import enum_name
from fedround_client.command.quantities import duration_text, size_text
from fedround_client.command.top_rates import Rates
from fedround_client.printable import one_line
from fedround_client.round_number import planned_rounds

WIDE = 140
"""Columns from which on there is room for the busiest methods."""
METHODS = 8
SUMMARY_LINES = 15
"""Lines of the screen besides those of trainings."""


@dataclass(frozen=True)
class View:
    """One moment of a server.

    Attributes:
        address: The address of the server.
        status: What it is doing.
        rates: What has happened since the status before.
        full_in: When uploads of models will be refused, if the disk goes on to fill up; None if that is not known.
        trainings: The running trainings that the caller may see.
        problem: Why there is no newer status; empty if there is.
    """

    address: str
    status: ServerStatus
    rates: Rates
    full_in: timedelta | None = None
    trainings: Sequence[Training] = ()
    problem: str = ""

    def line(self) -> str:
        """Returns the moment as one line."""
        status, rates = self.status, self.rates
        rejected = f" ({_by_name(rates.rejected)})" if rates.rejected else ""
        refused = refusal(status.disk)
        parts = [
            _clock(status.current_time),
            f"calls {_rate(rates.calls)}, failed {_rate(rates.failed_calls)}",
            f"in {size_text(rates.received_bytes)}/s, out {size_text(rates.sent_bytes)}/s",
            f"updates {_rate(rates.updates)}, rejected {_rate(sum(rates.rejected.values()))}{rejected}",
            f"uploads {status.uploads}, downloads {status.downloads}, subscriptions {status.subscriptions}",
            f"trainings {status.running_trainings}",
            f"cpu {rates.cpu:.0%}, memory {size_text(status.memory_bytes)}",
            f"jobs {status.worker.jobs_running} running, {status.worker.jobs_waiting} waiting",
            f"commits {_rate(rates.commits)}, {_milliseconds(rates.commit_seconds)}",
            f"disk {size_text(status.disk.free_bytes)} free{f', {refused}' if refused else ''}",
        ]
        if status.replicas:
            parts.append(f"replicas {_replicas(status)}")
        return "; ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the moment as a screen."""
        width = options.max_width
        yield self._title(width)
        yield Text()
        if width < WIDE:
            yield self._summary()
        else:
            screen = Table.grid(padding=(0, 4))
            screen.add_row(self._summary(), self._methods())
            yield screen
        if self.trainings:
            yield Text()
            yield self._training_table(max(3, console.height - SUMMARY_LINES - 3), wide=width >= WIDE)

    def _title(self, width: int) -> Text:
        status = self.status
        up = status.current_time.ToSeconds() - status.start_time.ToSeconds()
        name = replica_name(status)
        place = f"{self.address} (replica {name})" if name else self.address
        title = f"fedround {one_line(status.version)} at {place}, up {duration_text(up)}"
        text = Text(f"{title}   {_clock(status.current_time)}", style="bold")
        if self.problem:
            text.append(f"\n{self.problem}", style="bold red")
        text.truncate(2 * width)
        return text

    def _summary(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text, style in self._lines():
            table.add_row(name, Text(text, style=style))
        return table

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """Yields names, texts and styles of the lines."""
        status, rates = self.status, self.rates
        worker, database, disk = status.worker, status.database, status.disk
        failed = rates.failed_calls
        yield (
            "calls",
            f"{_rate(rates.calls)}, {_rate(failed)} failed; {status.calls_in_progress} in progress",
            "yellow" if failed else "",
        )
        yield "traffic", f"{size_text(rates.received_bytes)}/s in, {size_text(rates.sent_bytes)}/s out", ""
        yield (
            "streams",
            f"uploads: {status.uploads}, downloads: {status.downloads}, subscriptions: {status.subscriptions:,}",
            "",
        )
        rejected = f": {_by_name(rates.rejected)}" if rates.rejected else ""
        yield (
            "updates",
            f"{_rate(rates.updates)} accepted, {_rate(sum(rates.rejected.values()))} rejected{rejected};"
            f" {_rate(rates.failures)} failures",
            "yellow" if rates.rejected or rates.failures else "",
        )
        yield "rounds", f"{_rate(rates.rounds)} done; running trainings: {status.running_trainings}", ""
        yield "server", f"CPU {rates.cpu:.0%} of a core, memory {size_text(status.memory_bytes)}", ""
        if status.replicas:
            yield "replicas", _replicas(status), ""
        yield (
            "worker",
            f"jobs: {worker.jobs_running} running, {worker.jobs_waiting} waiting, {_rate(rates.jobs)} done;"
            f" memory {size_text(worker.memory_bytes)}; crashes: {worker.crashes}",
            "yellow" if worker.crashes else "",
        )
        yield (
            "database",
            f"{one_line(database.kind)}, {size_text(database.size_bytes)}; {_rate(rates.commits)} commits,"
            f" {_milliseconds(rates.commit_seconds)} on average",
            "",
        )
        refused = refusal(disk)
        soon = (
            f", in {duration_text(self.full_in.total_seconds())} if it goes on like this"
            if self.full_in is not None
            else ""
        )
        yield (
            "disk",
            f"{bar(disk)} {size_text(disk.free_bytes)} free of {size_text(disk.total_bytes)};"
            f" unfinished uploads {size_text(disk.unfinished_bytes)}",
            "",
        )
        yield "", f"files {size_text(disk.stored_bytes)}, of at most {size_text(disk.max_stored_bytes)}", ""
        limits = (
            f"models are refused below {size_text(disk.min_free_bytes)} free, updates below"
            f" {size_text(disk.min_free_bytes / 2)}{soon}"
        )
        yield "", refused or limits, "bold red" if refused else "yellow" if soon else "dim"

    def _methods(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan")
        table.add_column(justify="right")
        table.add_row("busiest methods", "")
        busiest = sorted(self.rates.methods.items(), key=lambda item: (-item[1], item[0]))[:METHODS]
        for name, rate in busiest:
            table.add_row(Text(one_line(name.removeprefix("fedround.v1.")), style=""), _rate(rate))
        return table

    def _training_table(self, room: int, *, wide: bool) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
        table.add_column("TRAINING", no_wrap=True, max_width=60 if wide else 28, overflow="ellipsis")
        if wide:
            table.add_column("ACTOR", no_wrap=True, max_width=30, overflow="ellipsis")
        for name in ("STATE", "ROUND", "ARRIVED", "VERSION"):
            table.add_column(name, no_wrap=True)
        for one in self.trainings[:room]:
            actor = [Text(one_line(one.actor_name))] if wide else []
            table.add_row(
                Text(one_line(one.spec.name)),
                *actor,
                _state(one),
                f"{one.round + 1}/{planned_rounds(one.spec)}",
                f"{one.updates_arrived} of {one.updates_expected}",
                f"{one.model_version}/{one.spec.target_num_updates}",
            )
        if len(self.trainings) > room:
            table.add_row(Text(f"and {len(self.trainings) - room} more", style="dim"))
        return table


def replica_name(status: ServerStatus) -> str:
    """Returns the name of the server that a status is of; empty if no others share its database."""
    if len(status.replicas) < 2:
        return ""
    return next((one_line(one.name) for one in status.replicas if one.replica_id == status.replica_id), "")


def refusal(disk: DiskStatus) -> str:
    """Returns which uploads the server refuses since the disk is full; empty if none."""
    if disk.free_bytes < disk.min_free_bytes // 2:
        return f"models and updates are refused: less than {size_text(disk.min_free_bytes / 2)} free"
    if disk.free_bytes < disk.min_free_bytes:
        return f"models are refused: less than {size_text(disk.min_free_bytes)} free"
    if disk.stored_bytes >= disk.max_stored_bytes:
        return f"models are refused: the files have more than {size_text(disk.max_stored_bytes)}"
    return ""


def bar(disk: DiskStatus, width: int = 20) -> str:
    """Returns how full a disk is, as a bar of so many characters and its brackets."""
    used = 1 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 0.0
    filled = min(width, max(0, round(used * width)))
    return f"[{'#' * filled}{'-' * (width - filled)}]"


def _replicas(status: ServerStatus) -> str:
    """Returns the names of the replicas with their versions."""
    return ", ".join(one_line(f"{one.name} ({one.version})") for one in status.replicas)


def _state(training: Training) -> str:
    if training.paused:
        return "paused"
    return "closed" if training.round_closed else enum_name(TrainingState, training.state).lower()


def _rate(per_second: float) -> str:
    """Returns how often something happens, such as "0.5/s"."""
    digits = 0 if per_second >= 99.5 or per_second == 0 else 1 if per_second >= 0.95 else 2
    return f"{per_second:,.{digits}f}/s"


def _by_name(rates: Mapping[str, float]) -> str:
    most = sorted(rates.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{one_line(name)} {_rate(rate)}" for name, rate in most)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _clock(time: Timestamp) -> str:
    """Returns a time of day in local time."""
    return datetime.fromtimestamp(time.ToNanoseconds() / 1e9, UTC).astimezone().strftime("%H:%M:%S")
