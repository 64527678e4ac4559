"""The log says that the disk is almost full, and why a call was rejected."""

from pathlib import Path

import grpc

from calls import Person, fails_with, until
from servers import Server


def test_a_disk_that_is_almost_full_is_in_the_log(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data", options=("--min-free-bytes", "1000TiB")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert server.log.count("the disk is almost full: ") == 1
        assert f"new models leave {1000 << 40}" in server.log
        admin = Person(channel, server.admin_token)
        for _ in range(2):
            with fails_with("RESOURCE_EXHAUSTED", "DISK_FULL", "almost full"):
                admin.create()
        until(lambda: server.log.count("reason=DISK_FULL") == 2)
        assert server.log.count("the disk is almost full: ") == 1
