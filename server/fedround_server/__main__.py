"""`python -m fedround_server`: parses the settings and serves until a signal arrives."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TextIO

import structlog
from pydantic import ValidationError

from fedround_server import logs, processes
from fedround_server.app import serve
from fedround_server.blobs.objects import exposed_credentials
from fedround_server.config import Settings, command_line, problems
from fedround_server.config import file as config_file
from fedround_server.domain.errors import ObjectsUnavailable
from fedround_server.host import allocator
from fedround_server.host.service_manager import notify
from fedround_server.start_errors import explain
from fedround_server.store.db.connection import database_name

log = structlog.get_logger("fedround.main")


def main(argv: list[str] | None = None) -> int:
    """Runs a server, with the arguments of the process by default.

    Returns:
        The exit code: 0 after a signal, 1 after a failure, 2 for invalid settings.
    """
    arguments = sys.argv[1:] if argv is None else argv
    chosen = command_line.parse(arguments)
    try:
        settings = Settings(**chosen)
    except ValidationError as error:
        for problem in problems(error, chosen):
            sys.stderr.write(f"error: {problem}\n")
        for variable, near in _unknown_variables().items():
            sys.stderr.write(f"warning: {variable} is no setting: do you mean {near}?\n")
        return 2
    with logs.capture_stderr() if settings.log_format == "json" else nullcontext() as stderr:
        logs.set_up(settings.log_format, settings.log_level, stderr)
        if processes.own_number() is None:
            if settings.config is not None:
                log.info("read settings from a file", path=str(settings.config))
            # Before the start, whose failure it may explain.
            for variable, near in _unknown_variables().items():
                log.warning("an environment variable is no setting", variable=variable, nearest=near)
        return _serve(settings, chosen, arguments, stderr)


def places(settings: Settings) -> str:
    """Returns where the data of a server is, without passwords."""
    found = [str(settings.data_dir.resolve())]
    if settings.database:
        found.append(f"in PostgreSQL at {database_name(settings.database)}")
    if settings.objects:
        found.append(f"in {settings.objects}")
    return " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)


def _warn_of_secrets(settings: Settings, chosen: Mapping[str, object]) -> None:
    """Logs who else can see the database's password, or the credentials of the object store."""
    if settings.config is not None and config_file.exposes_password(settings.config):
        log.warning("others can read the database's password in this file: run chmod 600", path=str(settings.config))
    if config_file.has_password(str(chosen.get("database", ""))):
        log.warning("others can see the password in --database: put it into the file, or into FEDROUND_DATABASE")
    if settings.objects and (path := exposed_credentials()):
        log.warning("others can read the object store's credentials in this file: run chmod 600", path=path)


def _unknown_variables() -> dict[str, str]:
    return config_file.unknown_variables(os.environ, Settings.model_fields)


def _serve(settings: Settings, chosen: Mapping[str, object], arguments: list[str], stderr: TextIO | None) -> int:
    """Serves until a signal arrives, in this process or in several; returns the exit code."""
    allocator.keep_freed_blocks()
    try:
        if processes.own_number() is None:
            if settings.processes > 1:
                return processes.Supervisor(settings, arguments, places(settings), stderr).run()
            processes.check_journals(settings.data_dir, 1)
        asyncio.run(_run(settings, chosen))
    except Exception as error:
        for cause in _causes(error):
            _report(cause, settings)
        return 1
    return 0


def _report(error: Exception, settings: Settings) -> None:
    """Tells the operator why the server stops: in one line of the log's format, if it is not a defect."""
    message = explain(error, settings.data_dir) if isinstance(error, OSError) else str(error)
    if not isinstance(error, RuntimeError | OSError | ObjectsUnavailable):
        log.error("unexpected error: the server stops", exc_info=error)
    if settings.log_format == "json":
        log.error(message)
    else:
        sys.stderr.write(f"error: {message}\n")


def _causes(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [cause for inner in error.exceptions for cause in _causes(inner)]
    return [error]


async def _run(settings: Settings, chosen: Mapping[str, object]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            # The second signal does not wait for calls in progress.
            signal.raise_signal(signal.SIGKILL)
        stop.set()

    # SIGHUP says that the terminal is gone; under nohup it is ignored, and stays so.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal)
    if processes.own_number() is not None:
        # Its end says that the supervisor is gone.
        loop.add_reader(sys.stdin.fileno(), _on_end_of_input, loop, stop)
    async with serve(settings) as address:
        sys.stdout.write(f"fedround is serving on {address}\n")
        sys.stdout.write(f"the data is in {places(settings)}\n")
        sys.stdout.flush()
        allocator.set_up()
        if not processes.own_number():
            _warn_of_secrets(settings, chosen)
        notify(f"READY=1\nSTATUS=serving on {address}")
        await stop.wait()
        notify("STOPPING=1\nSTATUS=finishing the calls in progress")
        log.info("stopping")


def _on_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.remove_reader(sys.stdin.fileno())
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
