"""What processes use of the machine."""

import os
import time
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(process_id: int) -> int:
    """Returns the resident memory of a process; 0 if it has ended, or where the system does not tell."""
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def cpu_seconds() -> float:
    """Returns the CPU time that all threads of this process have taken."""
    return time.process_time()
