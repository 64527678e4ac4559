"""`fedround demo`: several clients train a classifier of handwritten digits through a real server on this machine."""

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.text import Text

import fedround_client as fr
from fedround_client.demo.display import Dashboard, comparison
from fedround_client.demo.report import Outcome, draw, draw_rotated, write_json
from fedround_client.demo.settings import ARCHITECTURE, FACTORY, Settings, parse
from fedround_client.embedded.interruption import Interrupted, ignore_signals, interruptible
from fedround_client.embedded.processes import ProcessExited, ProcessGroup
from fedround_client.embedded.server import Server
from fedround_client.exit_codes import code_of_error

RESULTS = {
    "accuracy.png": "the accuracy by round, compared with the alternatives",
    "uncertainty.png": "the uncertainty and the accuracy of the model on rotated digits",
    "report.json": "the numbers",
    "model.safetensors": "the final model",
}


def main(argv: Sequence[str]) -> int:
    """Runs the demo.

    Args:
        argv: The arguments of `fedround demo`.

    Returns:
        The exit code: 0, 1 after an error (4 if the training failed), 128 + N after signal N (130 after Ctrl-C).
    """
    settings = parse(argv)
    console = Console()
    try:
        with interruptible():
            _demonstrate(settings, console)
    except Interrupted as interruption:
        console.print(f"Stopped by {signal.Signals(interruption.number).name}. Nothing is left running.")
        return 128 + interruption.number
    except (ProcessExited, fr.FedroundError, OSError) as error:
        console.print(Text(f"The demo failed. {error}", "red"), soft_wrap=True)
        return code_of_error(error)
    return 0


def _demonstrate(settings: Settings, console: Console) -> None:
    begin = time.monotonic()
    output = settings.output
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for file in RESULTS:  # so that all files at the end are from this run
        (output / file).unlink(missing_ok=True)
    dashboard = Dashboard(console, settings.rounds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedround-demo-")))
        processes = stack.enter_context(ProcessGroup(logs))
        stack.callback(ignore_signals)  # a second Ctrl-C must not interrupt the clean-up
        stack.enter_context(dashboard.shown())
        try:
            outcome = _federate(settings, dashboard, processes, folder)
        except fr.FedroundError:
            processes.check()  # the log of an ended process says more than the error of a call
            raise
        dashboard.set_phase("Drawing the curves")
        draw(outcome, settings, output / "accuracy.png")
        draw_rotated(outcome.rotated, output / "uncertainty.png")
    seconds = time.monotonic() - begin
    write_json(outcome, settings, seconds, output / "report.json")
    console.print("\nAccuracy on the held-out digits, by round:")
    console.print(comparison(outcome))
    console.print(Text(f"Done in {seconds:.0f} s. The results are in {output}:"), soft_wrap=True)
    for file, content in RESULTS.items():
        console.print(Text(f"  {file:<18} {content}"), soft_wrap=True)
    console.print(Text(f"  {'logs':<18} the log of each process"), soft_wrap=True)


def _federate(settings: Settings, dashboard: Dashboard, processes: ProcessGroup, folder: Path) -> Outcome:
    dashboard.set_phase("Starting the server")
    server = Server(processes, folder / "server", [f"--architecture={ARCHITECTURE}={FACTORY}"])
    # Imports torch, which takes two seconds: --help does not need it, and the server starts meanwhile.
    from fedround_client.demo.data import load, split
    from fedround_client.demo.federation import ClientAccount, Federation

    images = split(load(), settings.clients, settings.alpha, settings.seed)
    address = server.wait()
    with fr.connect(address, server.admin_token()) as admin:
        _, actor_token = admin.create_user("demo actor", role="ACTOR")
        accounts = [ClientAccount.of(*admin.create_user(f"client {number + 1}")) for number in range(settings.clients)]
    dashboard.set_phase(f"Starting {settings.clients} clients at {address}")
    with fr.connect(address, actor_token) as actor:
        federation = Federation(actor, address, settings, images, dashboard)
        outcome = federation.run(processes, accounts, folder)
        actor.download_model(outcome.model_id, to=settings.output / "model.safetensors")
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
