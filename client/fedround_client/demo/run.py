"""`fedround demo`: several clients learn handwritten digits together through a real server on this machine."""

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

import fedround_client as fr
from fedround_client.demo.display import Board, comparison
from fedround_client.demo.processes import ChildEnded, Children
from fedround_client.demo.report import Outcome, draw, draw_turned, write_json
from fedround_client.demo.server import Server
from fedround_client.demo.settings import Settings, parse

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESULTS = {
    "accuracy.png": "the accuracy by round against the alternatives",
    "uncertainty.png": "how sure the model is of digits that are turned",
    "report.json": "the numbers",
    "model.safetensors": "the final model",
}


class Interrupted(BaseException):
    """Somebody wants the demo to end."""

    def __init__(self, number: int) -> None:
        """Takes the signal's number."""
        super().__init__(number)
        self.number = number


def main(argv: Sequence[str]) -> int:
    """Runs the demo.

    Args:
        argv: The command line behind `fedround demo`.

    Returns:
        The exit code: 0, 1 after an error, 128 + N after signal N (130 after Ctrl-C).
    """
    settings = parse(argv)
    console = Console()
    try:
        with _interruptible():
            _demonstrate(settings, console)
    except Interrupted as interruption:
        console.print(f"Stopped by {signal.Signals(interruption.number).name}. Nothing is left running.")
        return 128 + interruption.number
    except (ChildEnded, fr.FedroundError, OSError) as error:
        console.print(Text(f"The demo failed. {error}", "red"), soft_wrap=True)
        return 1
    return 0


def _demonstrate(settings: Settings, console: Console) -> None:
    begin = time.monotonic()
    output = settings.output
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for file in RESULTS:  # whatever is there at the end is from this run
        (output / file).unlink(missing_ok=True)
    board = Board(console, settings.rounds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedround-demo-")))
        children = stack.enter_context(Children(logs))
        stack.callback(_ignore_signals)  # a second Ctrl-C must not cut the clean-up short
        stack.enter_context(board.shown())
        try:
            outcome = _federate(settings, board, children, folder)
        except fr.FedroundError:
            children.check()  # a process that is gone says more than the call that missed it
            raise
        board.enter("Drawing the curves")
        draw(outcome, settings, output / "accuracy.png")
        draw_turned(outcome.turned, output / "uncertainty.png")
    seconds = time.monotonic() - begin
    write_json(outcome, settings, seconds, output / "report.json")
    console.print("\nAccuracy on the held-out digits, by round:")
    console.print(comparison(outcome))
    console.print(Text(f"Done in {seconds:.0f} s. The results are in {output}:"), soft_wrap=True)
    for file, content in RESULTS.items():
        console.print(Text(f"  {file:<18} {content}"), soft_wrap=True)
    console.print(Text(f"  {'logs':<18} what each process had to say"), soft_wrap=True)


def _federate(settings: Settings, board: Board, children: Children, folder: Path) -> Outcome:
    board.enter("Starting the server")
    server = Server(children, folder / "server")
    # Takes two seconds (torch), which is time enough for the server to start; and --help needs none of it.
    from fedround_client.demo.data import load, split
    from fedround_client.demo.federation import Federation, Seat

    images = split(load(), settings.clients, settings.alpha, settings.seed)
    address = server.wait()
    with fr.connect(address, server.admin_token()) as admin:
        _, actor_token = admin.create_user("demo actor", role="ACTOR")
        seats = [Seat.of(*admin.create_user(f"client {number + 1}")) for number in range(settings.clients)]
    board.enter(f"Starting {settings.clients} clients at {address}")
    with fr.connect(address, actor_token) as actor:
        federation = Federation(actor, address, settings, images, board)
        outcome = federation.run(children, seats, folder)
        actor.download_model(outcome.model_id, to=settings.output / "model.safetensors")
    return outcome


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turns the first signal to end into Interrupted, and ignores those that follow."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        _ignore_signals()
        raise Interrupted(number)

    # Under nohup, a hang-up is not meant.
    wanted = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
