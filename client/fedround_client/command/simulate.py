"""`fedround simulate`: a training with many simulated clients on this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fedround_client.command.failures import fail
from fedround_client.command.output import Format, FormatOption, echo, show_table, stderr_console
from fedround_client.command.serve import require
from fedround_client.command.training_create import EvaluationOption, OnFailureChoice
from fedround_client.embedded.interruption import Interrupted, interruptible
from fedround_client.printable import one_line
from fedround_client.round_number import round_text
from fedround_client.simulation.functions import SimulationFailed, load
from fedround_client.simulation.history import History, RoundRecord
from fedround_client.simulation.results import PLOT, REPORT, can_draw, metric_curves
from fedround_client.simulation.run import MAX_CLIENTS, Simulation, simulate

MAKE_MODEL = "make_model"
MAX_FAILURES = 5
"""How many failures of clients are printed."""

_MODULES = ("fedround_server", "peewee", "pydantic_settings", "structlog", "torch")


class EngineChoice(StrEnum):
    """Where the workers of a simulation run."""

    PROCESSES = "processes"
    RAY = "ray"


class FrameworkChoice(StrEnum):
    """The framework of the models that clients get."""

    NUMPY = "numpy"
    TORCH = "torch"


def run(
    make_client: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that takes the index of a client, and returns its train function, or (train, evaluate).",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The initial model: a safetensors file, or MODULE:FUNCTION, which returns it; by default the function"
            f" {MAKE_MODEL} of the same module."
        ),
    ] = "",
    clients: Annotated[int, typer.Option(min=1, max=MAX_CLIENTS, help="Number of clients.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Updates of the global model to make.")] = 10,
    fraction: Annotated[
        float | None, typer.Option(help="Part of the clients that each round needs, 0 < f <= 1; all by default.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of worker processes; that of the processors by default.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric that evaluations report; repeat for more.")] = None,
    evaluation: EvaluationOption = None,
    min_updates: Annotated[int, typer.Option(min=0, help="Updates that close a round; 0 for all.")] = 0,
    on_failure: Annotated[
        OnFailureChoice,
        typer.Option(case_sensitive=False, help="If a client fails: continue without it, or end the training."),
    ] = OnFailureChoice.CONTINUE,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
    engine: Annotated[EngineChoice, typer.Option(help="Where the workers run.")] = EngineChoice.PROCESSES,
    framework: Annotated[
        FrameworkChoice | None, typer.Option(help="Framework of the models that the functions get.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="New folder for the server's data; a temporary one by default.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results and the logs.")] = Path("simulation"),
    form: FormatOption = Format.TABLE,
) -> None:
    """Simulate many clients on this machine, with the functions that take part in a real training.

    A server and a few worker processes run until the training ends; Ctrl-C ends them all.
    """
    require("simulate", "server", _MODULES)
    sys.path.insert(0, str(Path.cwd()))
    view = _View(stderr_console())
    try:
        with interruptible(), view.shown():
            load(make_client)
            result = simulate(
                make_client,
                _initial_model(model or f"{make_client.partition(':')[0]}:{MAKE_MODEL}"),
                clients=clients,
                rounds=rounds,
                fraction=fraction,
                workers=workers,
                seed=seed,
                engine=engine.value,
                framework=None if framework is None else framework.value,
                data_dir=data_dir,
                output=output,
                listener=view.update,
                metric_names=metric or (),
                evaluation=None if evaluation is None else evaluation.value,
                min_updates=min_updates,
                on_failure=on_failure.value,
            )
    except Interrupted as interruption:
        echo(f"Stopped by {signal.Signals(interruption.number).name}. Nothing is left running.", err=True)
        raise typer.Exit(128 + interruption.number) from None
    except SimulationFailed as error:
        if error.details and form is Format.TABLE:
            echo(error.details, err=True)
        fail("SIMULATION_FAILED", error.message)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _show(result, output, form)


def _initial_model(source: str) -> Any:
    """Returns the initial model: the path of a file, or what a function returns."""
    if Path(source).suffix == ".safetensors":
        return source
    try:
        function = load(source)
    except SimulationFailed as error:
        raise SimulationFailed(f"{error.message} --model names the initial model.", error.details) from None
    return function()


class _View:
    """The rounds while they run: a table that changes in a terminal, otherwise one line for each round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._history = History({}, 0)
        self._printed = 0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the rounds during the block."""
        if not self._console.is_interactive:
            yield
            return
        with Live(self, console=self._console, refresh_per_second=8, transient=True) as self._live:
            yield

    def update(self, history: History) -> None:
        """Shows a history."""
        self._history = history
        if self._live is None:
            closed = [record for record in history.rounds if record.seconds is not None]
            for record in closed[self._printed :]:
                echo(_line(record, history.planned), err=True)
            self._printed = len(closed)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders as many of the latest rounds as fit on the screen."""
        if not self._history.rounds:
            yield "Starting the server and the workers"
            return
        table = Table.grid(padding=(0, 2))
        for record in self._history.rounds[-max(3, console.height - 4) :]:
            total = record.expected or None
            table.add_row(
                _title(record, self._history.planned),
                ProgressBar(total=total, completed=record.arrived, width=24, pulse=total is None),
                f"{record.arrived} of {record.expected}" if record.seconds is None else f"{record.arrived}",
                _metrics(record),
            )
        yield table
        if self._history.failures:
            yield f"{len(self._history.failures)} failures of clients"


def _title(record: RoundRecord, planned: int) -> str:
    suffixes = {"TRAIN": "", "EVALUATE": ", evaluation"}
    return round_text(record.number, planned) + suffixes.get(record.kind, f", {record.kind}")


def _metrics(record: RoundRecord) -> str:
    return one_line("  ".join(f"{name} {value:.4g}" for name, value in record.metrics.items()))


def _line(record: RoundRecord, planned: int) -> str:
    failed = f", {record.failed} failed" if record.failed else ""
    counted = f"{_title(record, planned)}: {record.arrived} clients{failed}, {record.seconds or 0:.2f} s"
    return f"{counted}  {_metrics(record)}".rstrip()


def _show(result: Simulation, output: Path, form: Format) -> None:
    if form is Format.JSON:
        echo((output / REPORT).read_text().rstrip())
        return
    curves = metric_curves(result.rounds)
    if curves:
        versions = sorted({version for points in curves.values() for version, _ in points})
        values = {name: dict(points) for name, points in curves.items()}
        rows = [[version, *(values[name].get(version, "") for name in values)] for version in versions]
        show_table(["VERSION", *values], rows)
    for failure in result.failures[:MAX_FAILURES]:
        text = f"client {failure.client} failed in round {failure.round + 1}: {failure.reason}: {failure.message}"
        echo(one_line(text), err=True)
    if len(result.failures) > MAX_FAILURES:
        echo(f"{len(result.failures) - MAX_FAILURES} more failures are in {output / REPORT}", err=True)
    echo(f"Done in {result.seconds:.1f} s. Model {result.model_sha256[:12]}, version {result.training.model_version}.")
    files = [REPORT, "model.safetensors", "logs"]
    if curves and can_draw():
        files.insert(1, PLOT)
    elif curves:
        echo(f'There is no {PLOT}, which needs matplotlib: pip install "fedround[demo]"', err=True)
    echo(f"The results are in {output}: {', '.join(files)}")
