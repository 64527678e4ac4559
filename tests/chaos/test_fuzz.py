"""Malformed inputs: each is read or rejected, in a second and in bounded memory."""

import sys
from pathlib import Path

import pytest

from chaos import fuzz_client, fuzz_server
from chaos.fuzzing import fuzz
from sizes import size

INPUTS = size("FUZZ", 10_000)
TARGETS = {**fuzz_server.TARGETS, **fuzz_client.TARGETS}
pytestmark = [pytest.mark.attack, pytest.mark.timeout(300 + INPUTS // 200)]


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_rejected(name: str, tmp_path: Path) -> None:
    target, share = TARGETS[name]
    with target(tmp_path) as feed:
        outcomes = fuzz(name, feed, max(100, int(INPUTS * share)))
    # An attack that meets one answer only has not come in.
    assert len(outcomes) > 1, outcomes
    sys.stdout.write(f"{name}: {outcomes.total()} inputs, {dict(outcomes.most_common())}\n")
