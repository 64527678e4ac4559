"""The one error of the storage layer that callers handle by itself."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fedround_server.domain.errors import DiskFull


@contextmanager
def map_disk_full() -> Iterator[None]:
    """Maps the operating system's errors about a full disk, or an exhausted quota, to `DiskFull`.

    Raises:
        DiskFull: There is no room for what the block writes.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("the server's disk is full: try again when the operator has made room") from error
        raise
