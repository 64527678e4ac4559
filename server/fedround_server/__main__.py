"""`python -m fedround_server`: parses the settings and serves until a signal arrives."""

import argparse
import asyncio
import signal
import sys
import tomllib
from contextlib import nullcontext

import structlog
from pydantic import ValidationError

from fedround_server import logs
from fedround_server.app import serve
from fedround_server.config import CONFIG_FILE, Settings
from fedround_server.host import allocator
from fedround_server.start_errors import explain

log = structlog.get_logger("fedround.main")


def main(argv: list[str] | None = None) -> int:
    """Runs a server, with the arguments of the process by default.

    Returns:
        The exit code: 0 after a signal, 1 after a failure, 2 for invalid settings.
    """
    try:
        settings = _parse(sys.argv[1:] if argv is None else argv)
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"error: {field + ': ' if field else ''}{message}\n")
        return 2
    except tomllib.TOMLDecodeError as error:
        sys.stderr.write(f"error: {CONFIG_FILE}: {error}\n")
        return 2
    with logs.capture_stderr() if settings.log_format == "json" else nullcontext() as stderr:
        logs.set_up(settings.log_format, settings.log_level, stderr)
        return _serve(settings)


def _serve(settings: Settings) -> int:
    """Serves until a signal arrives; returns the exit code."""
    allocator.keep_freed_blocks()
    try:
        asyncio.run(_run(settings))
    except Exception as error:
        for cause in _causes(error):
            _report(cause, settings)
        return 1
    return 0


def _report(error: Exception, settings: Settings) -> None:
    """Tells the operator why the server stops: in one line of the log's format, if it is not a defect."""
    message = explain(error, settings.data_dir) if isinstance(error, OSError) else str(error)
    if not isinstance(error, RuntimeError | OSError):
        log.error("unexpected error: the server stops", exc_info=error)
    if settings.log_format == "json":
        log.error(message)
    else:
        sys.stderr.write(f"error: {message}\n")


def _causes(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [cause for inner in error.exceptions for cause in _causes(inner)]
    return [error]


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            # The second signal does not wait for calls in progress.
            signal.raise_signal(signal.SIGKILL)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    async with serve(settings) as address:
        sys.stdout.write(f"fedround is serving on {address}\n")
        sys.stdout.write(f"the data is in {settings.data_dir.resolve()}\n")
        sys.stdout.flush()
        allocator.set_up()
        await stop.wait()
        log.info("stopping")


def _parse(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="fedround serve", description="Serves federated trainings.", allow_abbrev=False
    )
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action="store_true", default=None, help=field.description)
        elif field.annotation == tuple[str, ...]:
            parser.add_argument(flag, dest=name, action="append", default=None, metavar="VALUE", help=field.description)
        else:
            parser.add_argument(
                flag, dest=name, default=None, metavar="VALUE", help=_help(field.description, field.default)
            )
    chosen = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    return Settings(**chosen)


def _help(description: str | None, default: object) -> str:
    return f"{description} Default: {default}." if default not in (None, "") else str(description)


if __name__ == "__main__":
    sys.exit(main())
