"""The wheel and the sdist: what is in them, and that the wheel works where nothing else is installed."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from servers import Server

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedround", "fedround_client", "fedround_server", "fedround_wire")
LARGEST = 160 << 20
"""Bytes that the SDK may take with its dependencies."""
# Modules that a participant's program does not need when it starts; those of the server are not installed at all.
HEAVY = {
    "cryptography",
    "google.rpc",
    "grpc_status",
    "importlib.metadata",
    "multiprocessing",
    "numpy",
    "rich",
    "torch",
    "typer",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built without a network."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: run `make install`")
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel and its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    own = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(own), "install", "--quiet", "--no-compile"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pins = ["-c", str(ROOT / "constraints.txt")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run([*pip, *pins, str(wheel)], env=clean, capture_output=True, text=True, check=False)
    if "No matching distribution" in run.stderr or "connection" in run.stderr.lower():
        pytest.skip("the dependencies of the wheel cannot be downloaded here")
    assert run.returncode == 0, run.stderr
    return own


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable leads the installed package to these sources, or to a server."""
    for name in [name for name in os.environ if name.startswith(("PYTHON", "FEDROUND_"))]:
        monkeypatch.delenv(name)


def sources() -> set[str]:
    """The files that git does not ignore, by their names in the wheel."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "client", "generated", "server", "wire"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line.partition("/")[2] for line in listed.splitlines()}


def test_the_wheel_has_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == sources()
    assert {name.partition("/")[0] for name in names - info} == set(PACKAGES)
    assert {f"{one}/py.typed" for one in ("fedround/v1", "fedround_client", "fedround_wire")} <= names
    assert {"fedround/v1/training_pb2.pyi", "fedround/v1/fedround.protoset"} <= names
    assert {f"fedround_client/template/{name}" for name in ("README.md", "actor.py", "network.py")} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in info)


def test_the_metadata_names_the_command_and_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/METADATA")).removesuffix("METADATA")
        metadata = archive.read(f"{folder}METADATA").decode()
        assert "fedround = fedround_client.command:main" in archive.read(f"{folder}entry_points.txt").decode()
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert {"server", "postgres", "dashboard", "otel", "demo", "dev"} <= extras
    plain = {line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line}
    assert not any(re.search("torch|peewee|pydantic", line) for line in plain)


def test_the_sdist_can_be_built_again_and_has_no_models(built: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = next(tmp_path.iterdir())
    assert {"LICENSE", "README.md", "pyproject.toml", "protos", "tests"} <= {path.name for path in folder.iterdir()}
    assert [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pyc", ".token")] == []
    words = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "again")]
    subprocess.run(words, cwd=folder, capture_output=True, check=True)
    again = next((tmp_path / "again").glob("*.whl"))
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.usefixtures("environment")
def test_the_sdk_is_small_and_loads_little(python: Path) -> None:
    files = [path for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    run = subprocess.run(
        [python, "-X", "importtime", "-c", "import fedround_client"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "fedround_client" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.usefixtures("environment")
def test_the_wheel_works_where_nothing_else_is_installed(python: Path, tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        words = [python, str(ROOT / "tests/packaging/smoke.py"), server.address, server.admin_token]
        run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
