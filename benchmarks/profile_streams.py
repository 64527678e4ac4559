"""Shows what an upload and a download cost the server: its CPU by what it was spent on, sampled by Linux's perf.

Without perf, or without the right to use it, nothing is measured, and that is said.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import fedround_client as fr
from limits import Limits
from measure import MIB, cpu_seconds, fedround_server, keep, tree
from streams import HERE, peer

BY_CALL = {
    "write (kernel)": ("ksys_write", "vfs_write", "do_fsync", "vfs_fsync_range"),
    "read (kernel)": ("vfs_read", "ksys_pread64", "do_preadv", "vfs_iter_read", "vfs_readv"),
    "TCP (kernel)": ("__sys_recvmsg", "__sys_sendmsg", "___sys_recvmsg", "___sys_sendmsg", "net_rx_action"),
    "clearing memory (kernel)": ("exc_page_fault", "asm_exc_page_fault"),
    "waiting, waking (kernel)": ("do_futex", "do_epoll_wait", "schedule", "__schedule", "eventfd_write"),
}
"""What is known by a function that leads to it."""
BY_LIBRARY = {
    "SHA-256": ("libcrypto",),
    "CRC-32C": ("libcrc32c", "_crc32c"),
    "NaN and Inf": ("libtorch", "libc10", "libgomp"),
    "gRPC": ("cygrpc",),
    "protobuf": ("_message", "upb"),
    "Python": ("libpython", "python3"),
}


def classify(stack: list[tuple[str, str]]) -> str:
    """Tells what a sample was spent on, from its functions and their libraries, the innermost first."""
    functions = {function.partition("+")[0] for function, _ in stack}
    for what, calls in BY_CALL.items():
        if functions.intersection(calls):
            return what
    function, library = stack[0]
    if "memmove" in function or "memcpy" in function:
        return "copies"
    for what, names in BY_LIBRARY.items():
        if any(name in library for name in names):
            return what
    return "other"


def stacks(recorded: Path) -> Iterator[list[tuple[str, str]]]:
    """Reads the samples of a recording."""
    command = ["perf", "script", "-i", str(recorded), "-F", "ip,sym,dso"]
    text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    for block in text.split("\n\n"):
        stack = []
        for line in block.splitlines():
            _, _, rest = line.strip().partition(" ")
            function, _, library = rest.rpartition(" (")
            if library:
                stack.append((function.strip(), library.rstrip(")")))
        if stack:
            yield stack


def profile(size_mib: int, repeats: int, folder: Path) -> dict[str, dict[str, float]]:
    """Returns the nanoseconds of CPU a byte, by what they were spent on, of an upload and of a download."""
    limits = Limits(folder, size_mib * MIB)
    found = {}
    with ExitStack() as stack:
        running = stack.enter_context(fedround_server(folder / "data"))
        with fr.connect(running.address, running.token) as admin:
            _, token = admin.create_user("benchmark", "ACTOR")
        client = peer(stack, running.address, token, limits.path)
        client.ask("up")
        client.ask("down")
        pids = tree(running.pid)
        for what in ("up", "down"):
            recorded = folder / f"{what}.data"
            watched = ",".join(map(str, pids))
            command = ["perf", "record", "-g", "-F", "999", "-p", watched, "-o", str(recorded)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as perf:
                time.sleep(1)
                before = cpu_seconds(pids)
                for _ in range(repeats):
                    client.ask(what)
                spent = (cpu_seconds(pids) - before) / (repeats * limits.path.stat().st_size) * 1e9
                perf.terminate()
            counts = Counter(map(classify, stacks(recorded)))
            found[what] = {name: spent * count / counts.total() for name, count in counts.most_common()}
    return found


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    if (
        shutil.which("perf") is None
        or subprocess.run(["perf", "record", "-o", "/dev/null", "true"], capture_output=True).returncode
    ):
        print("profile: SKIPPED, perf is not here or may not be used")
        return
    with tempfile.TemporaryDirectory(dir=HERE) as name:
        found = profile(options.size_mib, options.repeats, Path(name))
    for what, costs in found.items():
        print(f"{what}: {sum(costs.values()):.2f} ns of CPU a byte in the server")
        for name, cost in costs.items():
            print(f"  {name:26} {cost:5.2f}")
    keep("profile", {"size_mib": options.size_mib, "ns_per_byte": found})


if __name__ == "__main__":
    main()
