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

IN_THREADS = """
import resource, sys, threading
from concurrent.futures import ThreadPoolExecutor
from fedround_wire.allocator import keep_freed
keep_freed(4 << 20, 32 << 20, 1 if sys.argv[1] == "one heap" else None)
both = threading.Barrier(2)
def faults_of_chunks(turn):
    for now in range(2):
        both.wait()
        if now == turn:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            [bytearray(3 << 18) for _ in range(20)]
            faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    both.wait()
    return faults
with ThreadPoolExecutor(2) as threads:
    print(list(threads.map(faults_of_chunks, range(2)))[1])
"""


def faults(how: str, code: str = COUNT) -> int:
    return int(run(code, how, **{name: value for name, value in os.environ.items() if name not in USER_SETTINGS}))


def run(code: str, argument: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, argument]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no glibc")
def test_reused_blocks_need_no_new_pages() -> None:
    assert faults("kept") * 10 < faults("by default")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no glibc")
def test_threads_with_one_heap_reuse_each_others_blocks() -> None:
    assert faults("one heap", IN_THREADS) * 10 < faults("many heaps", IN_THREADS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no glibc")
def test_user_settings_are_not_changed() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    assert int(run(COUNT, "kept", **environment)) > 10_000
