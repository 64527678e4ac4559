"""Tests the wheel with other versions of Python, and with the oldest versions of its dependencies: `make compat`.

For each Python from 3.11 to 3.14 that is here, the wheel of this checkout is installed into an empty environment in
build/compat. There it runs a training (tests/packaging/smoke.py), and the unit tests of the SDK that need neither torch
nor a server. The oldest versions are those of the lower bounds in pyproject.toml, with the oldest Python.

    python scripts/compat.py [--short] [--server VERSION ...]

--short: the newest Python that is here, unless it is the one that runs this, where `make test` tests the wheel; and the
oldest versions; both without the unit tests.
--server: runs the server, too, in environments with these versions of Python: those for which pip finds a PyTorch for
CPUs alone. It is always the version that constraints.txt names.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedround_client.embedded.processes import ProcessGroup
from fedround_client.embedded.server import Server

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/compat"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
UNIT_TOOLS = ("grpcio-testing", "hypothesis", "pytest", "pytest-asyncio", "pytest-timeout")
# Tests of these need what is not installed: torch, or servers that are forked from the environment of the tests.
NOT_IN_UNIT_TESTS = re.compile(
    r"torch|^(?:import|from) (?:forked|servers|certificates|fedround_server)\b", re.MULTILINE
)


@dataclass(frozen=True)
class Case:
    """An environment to test.

    Attributes:
        version: Of Python, such as 3.11.
        is_oldest: Whether the dependencies have the oldest versions.
        has_server: Whether the server runs in it.
    """

    version: str
    is_oldest: bool
    has_server: bool

    @property
    def name(self) -> str:
        """Returns its name, which is that of its folder."""
        return f"{self.version}{'-oldest' if self.is_oldest else ''}{'-server' if self.has_server else ''}"


def interpreter(version: str) -> str | None:
    """Returns a Python of the version, if there is one: on the PATH, or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for found in filter(None, candidates):
        # A shim of pyenv fails for versions that are not selected, and Debian's Python may lack venv.
        if subprocess.run([found, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0:
            return str(found)
    return None


def oldest_versions(extras: tuple[str, ...]) -> list[str]:
    """Returns a constraint for each lower bound of the dependencies and of extras; the bound of an extra wins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    lowest = {}
    for requirement in listed:
        name, version = re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement).groups()
        lowest[name] = version
    pinned = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[0]
    return [pinned if name == "torch" else f"{name}=={version}" for name, version in lowest.items()]


def constraints(case: Case) -> list[str]:
    """Returns the versions that an environment gets; where they do not matter, only that of torch."""
    if case.is_oldest:
        return oldest_versions(("server",) if case.has_server else ())
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("torch==")]


def clean_environment() -> dict[str, str]:
    """Returns the environment without variables that lead to other packages, or to a server."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("FEDROUND_", "PYTHON"))}


def install(case: Case, python: str, wheel: Path, *more: str) -> Path:
    """Makes an environment with the wheel; returns its Python."""
    folder = FOLDER / case.name
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    (folder / "constraints.txt").write_text("\n".join(constraints(case)) + "\n", encoding="utf-8")
    own = folder / "bin/python"
    wanted = f"{wheel}[server]" if case.has_server else str(wheel)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "-c", folder / "constraints.txt"]
    pip = [sys.executable, "-m", "pip", "--python", own, "install", *quiet]
    subprocess.run([*pip, wanted, *more], env=clean_environment(), check=True)
    return own


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str]]:
    """A server of this environment; yields its address and the admin's token."""
    with ProcessGroup(folder) as processes:
        running = Server(processes, folder / "data")
        yield running.wait(), running.admin_token()


@contextmanager
def server_of(python: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """A server of another environment; yields its address and the admin's token."""
    command = [python, "-m", "fedround_client", "serve", "--listen=127.0.0.1:0", f"--data-dir={folder / 'data'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield (
                line.removeprefix("fedround is serving on ").strip(),
                (folder / "data/admin.token").read_text().strip(),
            )
        finally:
            process.terminate()


def unit_tests() -> list[Path]:
    """Returns the files with unit tests of the SDK that need neither torch nor a server."""
    files = sorted((ROOT / "tests/client").glob("test_*.py"))
    return [path for path in files if not NOT_IN_UNIT_TESTS.search(path.read_text(encoding="utf-8"))]


def check(case: Case, python: str, wheel: Path, is_short: bool) -> bool:
    """Installs and tests one case; returns whether all passed."""
    own = install(case, python, wheel, *(() if is_short else UNIT_TOOLS))
    environment = clean_environment()
    with tempfile.TemporaryDirectory(prefix="fedround-") as name:
        folder = Path(name)
        with server_of(own, folder) if case.has_server else server(folder) as (address, token):
            smoke = [own, ROOT / "tests/packaging/smoke.py", address, token]
            passed = subprocess.run(smoke, env=environment, cwd=folder, check=False).returncode == 0
    if not is_short:
        pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "-o", "addopts="]
        # What old versions warn of in each other is not ours to mend.
        pytest += ["-W", "default"] if case.is_oldest else []
        alone = ["--import-mode=importlib", "--confcutdir=tests/client", *map(str, unit_tests())]
        passed &= subprocess.run([own, *pytest, *alone], cwd=ROOT, env=environment, check=False).returncode == 0
    shutil.rmtree(FOLDER / case.name)
    return passed


def main() -> None:
    """Tests all cases, and prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--server", nargs="*", default=[], choices=VERSIONS)
    options = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", FOLDER], cwd=ROOT, check=True)
    wheel = next(FOLDER.glob("*.whl"))
    here = {version: interpreter(version) for version in VERSIONS}
    for version in (one for one, found in here.items() if found is None):
        print(f"Python {version}: SKIPPED, it is not here")
    found = [version for version, path in here.items() if path is not None]
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [version for version in found[-1:] if version != running] if options.short else found
    cases = [Case(version, False, False) for version in wanted] + [Case(found[0], True, False)]
    cases += [Case(version, False, True) for version in options.server]
    cases += [Case(version, True, True) for version in options.server[:1]]
    failed = []
    for case in cases:
        passed = check(case, here[case.version], wheel, options.short)
        print(f"{case.name}: {'passed' if passed else 'FAILED'}", flush=True)
        failed += [] if passed else [case.name]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
