"""`python -m fedround_server.doctor`: checks what a server needs on its machine; what `fedround doctor` runs.

The output is a JSON list of findings. The settings are those of the server: arguments, FEDROUND_* and fedround.toml.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from pydantic import ValidationError

from fedround_server.config import Settings, problems
from fedround_server.doctor.certificates import check_tls
from fedround_server.doctor.data_directory import check_disk, check_folder, is_locked
from fedround_server.doctor.database import Database
from fedround_server.doctor.finding import Finding
from fedround_server.doctor.machine import check_clock, check_files, check_port
from fedround_server.doctor.objects import check_objects

NAMES = ("data_dir", "database")


def main(argv: list[str] | None = None) -> int:
    """Prints the findings, of the arguments of the process by default.

    Returns:
        The exit code: 0, or 1 if a check fails.
    """
    parser = argparse.ArgumentParser(prog="python -m fedround_server.doctor", description=__doc__, allow_abbrev=False)
    for name in NAMES:
        help_ = Settings.model_fields[name].description
        parser.add_argument("--" + name.replace("_", "-"), default=None, metavar="VALUE", help=help_)
    chosen = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        findings = list(check(Settings(**chosen)))
    except ValidationError as error:
        findings = [Finding("settings", "fail", "; ".join(problems(error, chosen)))]
    sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    return int(any(finding.state == "fail" for finding in findings))


def check(settings: Settings) -> Iterator[Finding]:
    """Yields what all checks find, in the order in which a server would meet it."""
    yield Finding("settings", "ok", "valid")
    folder = check_folder(settings.data_dir)
    yield folder
    has_folder = settings.data_dir.is_dir()
    is_running, last = False, None
    try:
        is_running = has_folder and is_locked(settings.data_dir)
        yield Finding("server process", "ok", "a server runs on it" if is_running else "no server runs on it")
        if has_folder:
            yield from check_disk(settings)
        objects = check_objects(settings)
        if objects is not None:
            yield objects
    except OSError as error:
        yield Finding("server process", "fail", f"the data directory cannot be read: {error}")
    else:
        database = Database(settings, is_running=is_running, has_bucket=objects is None or objects.state == "ok")
        yield from database.check()
        last = database.last_time
    yield from check_tls(settings)
    yield check_port("port", settings.address, is_running=is_running)
    if settings.metrics_address is not None:
        yield check_port("metrics port", settings.metrics_address, is_running=is_running)
    yield check_files()
    yield check_clock(last)


if __name__ == "__main__":
    sys.exit(main())
