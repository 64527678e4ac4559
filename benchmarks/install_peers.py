"""Installs each peer into an environment of its own, below .peers, and says which could not be had, and why.

One that is there already is left alone. A peer that is missing is missing from the results, too; that is no failure.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from peers.systems import AGGREGATORS, SIMULATORS, SYSTEMS

PEERS = Path(__file__).parent.parent / ".peers"


def install(folder: Path, packages: tuple[str, ...]) -> str:
    """Installs one, and returns why it failed; nothing if it did not."""
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text().split() == list(packages):
        return ""
    python = folder / "bin" / "python"
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{done.stdout}{done.stderr}".strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    stamp.write_text("\n".join(packages))
    return ""


def main() -> None:
    """Installs all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of the environments")
    folder = parser.parse_args().peers
    folder.mkdir(parents=True, exist_ok=True)
    # Some share an environment.
    systems = [*SYSTEMS.values(), *SIMULATORS.values(), *AGGREGATORS.values()]
    for name, system in {system.environment: system for system in systems if system.is_peer}.items():
        print(f"{name}: {' '.join(system.packages)}", end=" ", flush=True)
        why = install(folder / name, system.packages)
        (folder / f"{name}.absent").write_text(why)
        print(f"COULD NOT BE INSTALLED, and will be missing: {why}" if why else "is installed")


if __name__ == "__main__":
    main()
