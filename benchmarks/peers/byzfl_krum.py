"""Aggregates files of float32 numbers with byzfl's Krum, in byzfl's environment; prints the seconds of each repeat.

Usage: python byzfl_krum.py F REPEATS OFFSET PATH...; the numbers of each file begin at OFFSET.
"""

import importlib.util
import sys
import time
import types

import numpy as np
import torch


def load_krum() -> type:
    """Returns byzfl's class without loading its data sets and pictures, which are no part of it."""
    spec = importlib.util.find_spec("byzfl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    for name, folder in (("byzfl", ""), ("byzfl.aggregators", "/aggregators")):
        package = types.ModuleType(name)
        package.__path__ = [one + folder for one in spec.submodule_search_locations]
        sys.modules[name] = package
    return importlib.import_module("byzfl.aggregators.aggregators").Krum  # type: ignore[no-any-return]


def main() -> None:
    """Measures."""
    f, repeats, offset = map(int, sys.argv[1:4])
    krum = load_krum()(f=f)
    torch.set_num_threads(1)
    for _ in range(repeats):
        start = time.perf_counter()
        rows = torch.stack([torch.from_numpy(np.fromfile(path, np.float32, offset=offset)) for path in sys.argv[4:]])
        krum(rows)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
