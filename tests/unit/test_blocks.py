"""Freed blocks of memory are kept for the next ones."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
if sys.argv[1] == "kept":
    from fedround_wire.blocks import keep_freed
    keep_freed(4 << 20, 32 << 20)
def chunks():
    for _ in range(20):
        [bytearray(3 << 18) for _ in range(20)]
chunks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
chunks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    answer = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    return int(answer.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no glibc")
def test_kept_blocks_come_without_new_pages() -> None:
    assert faults("kept") * 10 < faults("by default")
