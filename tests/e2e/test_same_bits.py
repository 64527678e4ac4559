"""The same updates make the same version, however the servers that aggregate them are arranged."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import users
from e2e.test_relays import site, trained
from replicas import replicas
from servers import MODULE, Server

CLIENTS = 4
ELEMENTS = 6_000_000
"""So many that Ray divides an aggregation into ranges."""


def versions(actor: fr.Client, ids: list[str], **spec: Any) -> list[str]:
    """Runs a training, and returns the digests of the versions of its model."""
    model = {"w": np.zeros(ELEMENTS, np.float32)}
    made = actor.create_training(model, name="t", target_num_updates=2, client_ids=ids, **spec)
    actor.start_training(made.training_id)
    ended = actor.wait(made.training_id, 240)
    return [one.sha256 for one in actor.model_versions(ended.model_id)]


def train(*servers: Server) -> list[str]:
    """Runs a training at servers that share a database, to which clients are connected in turn."""
    token, made = users(servers[0], CLIENTS)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        for number, (_, client_token) in enumerate(made):
            client = stack.enter_context(fr.connect(servers[number % len(servers)].address, client_token))
            pool.submit(client.participate, lambda model, _, number=number: trained(number, model))
        actor = stack.enter_context(fr.connect(servers[-1].address, token))
        return versions(actor, [user_id for user_id, _ in made])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The digests of one server that does everything itself."""
    with Server(tmp_path_factory.mktemp("one")) as server:
        yield train(server)


@pytest.mark.chaos
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("count", [1, 3])
def test_replicas(tmp_path: Path, database: str, expected: list[str], count: int) -> None:
    with replicas(tmp_path, database, count) as servers:
        assert train(*servers) == expected


@pytest.mark.chaos
def test_relays(tmp_path: Path, expected: list[str]) -> None:
    with ExitStack() as stack:
        parent = stack.enter_context(Server(tmp_path / "parent"))
        token, made = users(parent, 2)
        for index, (_, relay_token) in enumerate(made):
            numbers = range(2 * index, 2 * index + 2)
            relay = stack.enter_context(site(parent, relay_token, tmp_path / f"site{index}", numbers))
            relay.start()
        actor = stack.enter_context(fr.connect(parent.address, token))
        assert versions(actor, [user_id for user_id, _ in made], allow_relays=True) == expected


@pytest.mark.scale
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)
def test_ray(tmp_path: Path, expected: list[str]) -> None:
    with Server(tmp_path / "data", options=("--engine", "ray"), program=MODULE) as server:
        assert train(server) == expected
