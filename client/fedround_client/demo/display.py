"""The output of the demo: a live table in a terminal, otherwise one line per round."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fedround_client.demo.data import Digits
from fedround_client.demo.report import Outcome

STATES = {"waiting": "dim", "training": "yellow", "uploaded": "green", "training alone": "yellow", "done": "green"}
FRAME_LINES = 6
"""Lines of the display besides those of clients and rounds."""
MAX_COLUMNS = 5


@dataclass
class ClientRow:
    """A row of the client table."""

    name: str
    images: Digits
    state: str = "waiting"
    accuracy: float | None = None
    alone: float | None = None
    progress: tuple[int, int] = (-1, 0)

    def advance(self, round: int, step: int, state: str) -> None:
        """Sets the state unless a later one is set: messages of the client may overtake events of the server."""
        if (round, step) > self.progress:
            self.progress, self.state = (round, step), state


@dataclass
class RoundRow:
    """A row of the round table."""

    arrived: int = 0
    accuracy: float | None = None


@dataclass
class Dashboard:
    """The state of the demo, as it is displayed.

    Attributes:
        console: Console to print to.
        rounds_planned: Number of rounds.
        clients: The clients.
        rounds: The rounds so far, by number from 0.
        phase: The present step, as text.
    """

    console: Console
    rounds_planned: int
    clients: list[ClientRow] = field(default_factory=list)
    rounds: dict[int, RoundRow] = field(default_factory=dict)
    phase: str = ""
    _live: bool = False
    _spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the dashboard during the block."""
        if not self.console.is_interactive:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=10):
            self._live = True
            try:
                yield
            finally:
                # The final frame, which remains on the screen, has all rounds.
                self._live, self.phase = False, ""

    def set_phase(self, phase: str) -> None:
        """Sets the present step."""
        self.phase = phase
        if not self._live:
            self.console.print(phase, soft_wrap=True)

    def round(self, number: int) -> RoundRow:
        """Returns the row of a round; creates it if it does not exist."""
        return self.rounds.setdefault(number, RoundRow())

    def record_accuracy(self, number: int, accuracy: float) -> None:
        """Sets the accuracy of the model after a round."""
        row = self.round(number)
        row.accuracy = accuracy
        if not self._live:
            text = f"{self._title(number)}: {row.arrived} updates, accuracy {accuracy:.1%}"
            self.console.print(text, soft_wrap=True, highlight=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the dashboard; in live mode only as many rounds as fit on the screen."""
        if self.clients:
            yield self._client_table()
        room = max(3, console.height - len(self.clients) - FRAME_LINES)
        yield self._round_table(room if self._live else self.rounds_planned)
        if self.phase:
            self._spinner.update(text=self.phase)
            yield self._spinner

    def _client_table(self) -> Table:
        table = Table("client", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("images", justify="right")
        table.add_column("digits it has")
        table.add_column("state", min_width=max(map(len, STATES)))
        table.add_column("accuracy", justify="right")
        table.add_column("alone", justify="right")
        for row in self.clients:
            table.add_row(
                row.name,
                str(len(row.images)),
                _digits(row.images),
                Text(row.state, STATES[row.state]),
                percent(row.accuracy),
                percent(row.alone),
            )
        return table

    def _round_table(self, room: int) -> Table:
        table = Table.grid(padding=(0, 2))
        expected = len(self.clients)
        for number, row in sorted(self.rounds.items())[-room:]:
            table.add_row(
                self._title(number),
                ProgressBar(total=expected, completed=row.arrived, width=24),
                f"{row.arrived} of {expected} updates",
                Text("" if row.accuracy is None else f"accuracy {row.accuracy:.1%}", "bold"),
            )
        return table

    def _title(self, number: int) -> str:
        return f"round {number + 1:{len(str(self.rounds_planned))}} of {self.rounds_planned}"


def percent(accuracy: float | None) -> str:
    """Returns an accuracy as text; empty if it is not known yet."""
    return "" if accuracy is None else f"{accuracy:.1%}"


def comparison(outcome: Outcome) -> Table:
    """Returns a table of the accuracy after each round, compared with the alternatives to a federation."""
    columns = {"together": outcome.federated, "one place": outcome.centralised} | _alone(outcome.alone)
    table = Table("round", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0, 0, 1))
    for name in columns:
        table.add_column(name, justify="right")
    for number, accuracies in enumerate(zip(*columns.values(), strict=True)):
        last = number == len(outcome.federated) - 1
        table.add_row(str(number), *map(percent, accuracies), style="bold" if last else None)
    return table


def _alone(curves: list[list[float]]) -> dict[str, list[float]]:
    """Returns the columns for clients alone: one per client, or a summary if they do not fit on the screen."""
    if len(curves) <= MAX_COLUMNS:
        return {f"client {number}": curve for number, curve in enumerate(curves, start=1)}
    summaries: dict[str, Callable[[tuple[float, ...]], float]] = {"best alone": max, "mean": fmean, "worst": min}
    return {name: [summarise(at) for at in zip(*curves, strict=True)] for name, summarise in summaries.items()}


def _digits(images: Digits) -> Text:
    """Returns the digits that a client has images of, rare ones dim; a dot for those that it does not have."""
    text = Text()
    counts = images.label_counts()
    for label, count in enumerate(counts):
        text.append(str(label) if count else "·", "bold" if count * len(counts) >= len(images) / 2 else "dim")
    return text
