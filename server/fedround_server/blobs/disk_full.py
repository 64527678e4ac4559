"""The one error of the storage layer that callers handle by itself."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fedround_server.domain.errors import DiskFull


def is_disk_full(error: OSError) -> bool:
    """Returns whether an error is about a full disk, or an exhausted quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def explain(error: OSError) -> Exception:
    """Returns `DiskFull` for an error about a full disk, and any other error as it is."""
    if not is_disk_full(error):
        return error
    full = DiskFull("the server's disk is full: try again when the operator has made room")
    full.__cause__ = error
    return full


@contextmanager
def map_disk_full() -> Iterator[None]:
    """Maps errors by `explain`.

    Raises:
        DiskFull: There is no room for what the block writes.
    """
    try:
        yield
    except OSError as error:
        explained = explain(error)
        if explained is error:
            raise
        raise explained from error
