"""Users of a real server, and what they do with the SDK."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

import fedround_client as fr
from fedround.v1.training_pb2 import Training
from servers import Server

State = dict[str, Any]


def plus_one(model: State, round: fr.Round) -> tuple[State, int]:
    """Adds one to the tensor w."""
    return {"w": model["w"] + np.float32(1)}, 1


def users(server: Server, clients: int) -> tuple[str, list[tuple[str, str]]]:
    """Makes an actor and clients; returns its token, and the (id, token) of each."""
    name = uuid.uuid4()
    with fr.connect(server.address, server.admin_token) as admin:
        _, actor = admin.create_user(f"{name} actor", role="ACTOR")
        made = [admin.create_user(f"{name} client {number}") for number in range(clients)]
    return actor, [(user.user_id, token) for user, token in made]


class Federation:
    """An actor and clients, each of which takes part in a thread of its own."""

    def __init__(
        self,
        server: Server,
        actor: fr.Client,
        actor_token: str,
        clients: list[tuple[str, str]],
        pool: ThreadPoolExecutor,
        address: str = "",
    ) -> None:
        self.actor = actor
        self.actor_token = actor_token
        self.ids = [id_ for id_, _ in clients]
        self.tokens = [token for _, token in clients]
        self._address = address or server.address
        self._pool = pool

    def connect(self, number: int) -> fr.Client:
        """A connection in the name of a client."""
        return fr.connect(self._address, self.tokens[number])

    def take_part(self, number: int, *functions: Any) -> "Future[fr.Participation]":
        """Lets a client take part."""

        def run() -> fr.Participation:
            with self.connect(number) as client:
                return client.participate(*functions)

        return self._pool.submit(run)

    def run(self, functions: Callable[[int], tuple[Any, ...]], model: Any = None, **spec: Any) -> Training:
        """Runs a training of all clients to its end; `functions` makes what a client's participate gets."""
        training = self.actor.create_training(model, name="t", client_ids=self.ids, **spec)
        ends = [self.take_part(number, *functions(number)) for number in range(len(self.ids))]
        self.actor.start_training(training.training_id)
        for end in ends:
            end.result(60)
        return self.actor.get_training(training.training_id)


@contextmanager
def federation(server: Server, clients: int, address: str = "") -> Iterator[Federation]:
    """Makes users of their own for a test, who connect to the server, or to other addresses."""
    actor_token, made = users(server, clients)
    with fr.connect(address or server.address, actor_token) as actor, ThreadPoolExecutor(max(clients, 1)) as pool:
        yield Federation(server, actor, actor_token, made, pool, address)
