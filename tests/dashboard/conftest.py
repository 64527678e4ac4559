"""A server, and a dashboard of it, for all tests of a file."""

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from calls import Person
from dashboard.visitor import Served, serving
from servers import Server


@dataclass
class People:
    """Users of a server."""

    server: Server
    admin: Person
    actor: Person
    viewer: Person
    clients: list[Person]

    def training(self, **spec: object) -> str:
        """Creates a training of both clients; returns its id."""
        return self.actor.create(client_ids=[one.user_id for one in self.clients], **spec).training_id


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def people(server: Server) -> Iterator[People]:
    admin = Person(grpc.insecure_channel(server.address), server.admin_token)
    actor, viewer = admin.make(server.address, "ACTOR", "alice"), admin.make(server.address, "VIEWER", "screen")
    clients = [admin.make(server.address, "CLIENT", f"site {number}") for number in (1, 2)]
    yield People(server, admin, actor, viewer, clients)
    for one in (admin, actor, viewer, *clients):
        one.channel.close()


@pytest.fixture(scope="module")
def served(server: Server) -> Iterator[Served]:
    with serving(server) as running:
        yield running
