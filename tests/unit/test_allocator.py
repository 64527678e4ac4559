"""malloc reuses freed blocks."""

import os
import subprocess
import sys

import pytest

from fedround_wire.allocator import USER_SETTINGS

pytestmark = pytest.mark.serial

COUNT = """
import resource, sys
if sys.argv[1] == "kept":
    from fedround_wire.allocator import keep_freed
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
    return int(run(COUNT, how, **{name: value for name, value in os.environ.items() if name not in USER_SETTINGS}))


def run(code: str, argument: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, argument]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no glibc")
def test_reused_blocks_need_no_new_pages() -> None:
    assert faults("kept") * 10 < faults("by default")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no glibc")
def test_user_settings_are_not_changed() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    assert int(run(COUNT, "kept", **environment)) > 10_000
