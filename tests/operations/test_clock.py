"""A server whose machine has a wrong clock says so once, and goes by the clock of the database."""

from datetime import datetime
from pathlib import Path

import pytest

import fedround_client as fr
from replicas import AHEAD
from servers import Server

WARNING = "the clock of this machine is 3600 s ahead of that of the database"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_clock_that_is_an_hour_ahead(tmp_path: Path, database: str) -> None:
    def times(server: Server) -> tuple[datetime, datetime]:
        with fr.connect(server.address, server.admin_token) as admin:
            status = admin.server_status()
            return status.start_time.ToDatetime(), status.current_time.ToDatetime()

    with Server(tmp_path / "data", database=database, program=AHEAD) as server:
        started, ahead = times(server)
        assert server.log.count(WARNING) == 1
        server.stop()
        server.program = ()
        server.start()
        # None of the second one.
        assert server.log.count(WARNING) == 1
        assert started <= ahead < times(server)[1]
