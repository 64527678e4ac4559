"""A database that goes away and comes back under a running server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import psycopg
import pytest

from calls import Person, fails_with, model_file
from fedround.v1 import user_pb2
from servers import Server

ME = user_pb2.GetMyselfRequest()


@contextmanager
def away(database: str, postgres: str) -> Iterator[None]:
    """Ends all connections to a database, and allows none for the time of the block."""
    name = urlsplit(database).path.strip("/")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_lost_database_is_reported_and_missed_only_while_it_is_away(
    data_dir: Path, database: str, postgres: str
) -> None:
    with Server(data_dir, database=database) as server, grpc.insecure_channel(server.address) as channel:
        person = Person(channel, server.admin_token)
        me = person.users.GetMyself(ME).user
        made = person.create(client_ids=[me.user_id])
        person.start(made.training_id)
        with ThreadPoolExecutor(8) as pool:
            # So that there are several connections.
            found = pool.map(lambda _: person.users.GetMyself(ME).user.user_id, range(100))
            assert list(found) == [me.user_id] * 100
        with away(database, postgres):
            for call in (
                lambda: person.users.GetMyself(ME),
                lambda: person.submit(made.training_id, model_file(1)),
                lambda: next(person.subscribe(made.training_id)),
            ):
                with fails_with("UNAVAILABLE", "STORE_UNAVAILABLE", "the database does not answer") as error:
                    call()
                assert "RetryInfo" in error.details.details
            # The log says so once, and not for each call.
            lines = [line for line in server.log.splitlines() if "the database does not answer" in line]
            assert len([line for line in lines if "try again" not in line]) == 1
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda _: person.users.GetMyself(ME).user.user_id, range(100))
            assert list(found) == [me.user_id] * 100
        assert person.submit(made.training_id, model_file(1)).round == 0
