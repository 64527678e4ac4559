"""Examples are scripts beside each other, and no package."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def examples() -> Iterator[None]:
    folder = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
