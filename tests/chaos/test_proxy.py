"""Participants behind a bad network: whatever it does, the rounds come to their end, with the same bits."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

import fedround_client as fr
from chaos.proxy import Fate, Proxy, mixture
from fedround.v1 import training_pb2
from fedround_client.channel import OPTIONS
from servers import Server
from sizes import SEED, size

STRUCK = size("NETWORK_STRUCK", 4)
MIXTURES = size("NETWORKS", 1)
ROUNDS = 2
CLIENTS = 2
SHAPE = (2000,)
pytestmark = [pytest.mark.attack, pytest.mark.timeout(300)]
# A silent peer is found sooner than by those who have the time: the test has not.
PATIENCE = {
    "grpc.keepalive_time_ms": 6_000,
    "grpc.keepalive_timeout_ms": 3_000,
    "grpc.http2.ping_timeout_ms": 3_000,
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 500,
    # Else both participants would share a connection.
    "grpc.use_local_subchannel_pool": 1,
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("network")
    cert = authority.issue_cert("127.0.0.1")
    cert.private_key_pem.write_to_path(folder / "key.pem")
    for link in cert.cert_chain_pems:
        link.write_to_path(folder / "cert.pem", append=True)
    options = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
    with Server(folder / "data", options=options) as running:
        yield running


class Federation:
    """An actor who reaches the server, and clients who are behind something."""

    def __init__(self, server: Server, authority: trustme.CA) -> None:
        self._server = server
        self._credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with self._client(server.address, server.admin_token) as admin:
            _, self._actor = admin.create_user(f"actor {random.random()}", role="ACTOR")
            made = [admin.create_user(f"client {random.random()}") for _ in range(CLIENTS)]
        # Who is first in canonical order must not depend on ids that are made anew each time.
        self._clients = sorted((user.user_id, token) for user, token in made)

    def run(self, address: str) -> list[bytes]:
        """Runs a training whose clients go by an address; returns its versions."""
        with ExitStack() as stack:
            actor = stack.enter_context(self._client(self._server.address, self._actor))
            clients = [stack.enter_context(self._client(address, token)) for _, token in self._clients]
            pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
            training = actor.create_training(
                {"weight": np.zeros(SHAPE, np.float32)},
                name="t",
                target_num_updates=ROUNDS,
                client_ids=[user_id for user_id, _ in self._clients],
                metric_names=["accuracy"],
            )
            ends = [
                pool.submit(client.participate, train_like(number), evaluate, training_id=training.training_id)
                for number, client in enumerate(clients)
            ]
            actor.start_training(training.training_id)
            for end in ends:
                assert end.result(200).model_version == ROUNDS
            ended = actor.get_training(training.training_id)
            assert ended.state == training_pb2.TRAINING_STATE_COMPLETED
            return [actor.download_model(ended.model_id, version)["weight"].tobytes() for version in range(ROUNDS + 1)]

    def _client(self, address: str, token: str) -> fr.Client:
        options = list({**dict(OPTIONS), **PATIENCE}.items())
        return fr.Client(grpc.secure_channel(address, self._credentials, options=options), token, address=address)


def train_like(number: int) -> Callable[..., Any]:
    def train(model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
        noise = np.random.default_rng((number, round.number)).standard_normal(SHAPE).astype(np.float32)
        return fr.Update({"weight": model["weight"] * np.float32(0.9) + noise}, number + 1)

    return train


def evaluate(model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, float], int]:
    return {"accuracy": float(model["weight"].mean())}, 1


@pytest.fixture(scope="module")
def expected(server: Server, authority: trustme.CA) -> list[bytes]:
    """What comes out on a good network."""
    return Federation(server, authority).run(server.address)


def dying(end: str) -> Callable[[int], Fate]:
    """The first connections die somewhere, the very first before anything came through."""

    def fate(number: int) -> Fate:
        rand = random.Random(f"{SEED} {end} {number}")
        lives = 0 if number == 0 else rand.randint(0, 25_000)
        return Fate(lives=lives if number < STRUCK else None, end=end)

    return fate


NETWORKS: dict[str, Callable[[int], Fate]] = {
    "latency": lambda _: Fate(latency=0.02),
    "slices": lambda _: Fate(piece=1),
    "narrow": lambda _: Fate(piece=1000, pause=0.005),
    "reset": dying("reset"),
    "half": dying("half"),
    "hole": dying("hole"),
    "flip": dying("flip"),
    **{f"mixture {number}": mixture(SEED + number, STRUCK) for number in range(MIXTURES)},
}


# One of each sort; the others are for `make chaos`.
FEW = ("latency", "slices", "reset", "flip")


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=[] if name in FEW else pytest.mark.chaos) for name in NETWORKS]
)
def test_rounds_come_to_their_end_behind_any_network(
    server: Server, authority: trustme.CA, expected: list[bytes], network: str
) -> None:
    with Proxy(server.address, NETWORKS[network]) as proxy:
        assert Federation(server, authority).run(proxy.address) == expected
        assert proxy.connections >= CLIENTS
        if network in ("reset", "half", "hole", "flip"):
            assert proxy.struck >= STRUCK // 2
