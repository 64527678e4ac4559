"""Runs one training on one system: python -m peers NAME CLIENTS MEGABYTES ROUNDS FOLDER."""

import sys
from importlib import import_module

from peers.common import Workload

if __name__ == "__main__":
    import_module(f"peers.{sys.argv[1]}").run(Workload.of(sys.argv[2:]))
