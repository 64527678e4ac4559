"""Relays between real servers: the version of the flat training, whoever is killed meanwhile."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import users
from fedround.v1.training_pb2 import TRAINING_STATE_ERROR, Training
from forked import ForkedProcess, fork_server
from servers import Server

MODEL = {"w": np.zeros(50, np.float32), "b": np.zeros(3, np.float64)}
State = dict[str, Any]


def trained(number: int, model: State) -> tuple[State, int, dict[str, float]]:
    """What a client makes of a model: another thing than all others."""
    rng = np.random.default_rng(number)
    update = {name: (one + rng.normal(size=one.shape)).astype(one.dtype) for name, one in model.items()}
    return update, number % 5 + 1, {"loss": float(number)}


def report(number: int, model: State) -> tuple[dict[str, float], int]:
    return {"loss": float(number)}, number + 1


@dataclass
class Site:
    """A relay with its server, and clients that take part whenever they are asked.

    Attributes:
        open: Clients train only while it is set.
        asked: How often they were asked to.
        num_examples: How many examples they say to have; None for numbers of their own.
    """

    server: Server
    parent: Server
    token: str
    own_token: str
    actor: fr.Client
    folder: Path
    open: Event = field(default_factory=Event)
    asked: int = 0
    num_examples: int | None = None
    program: ForkedProcess | None = None

    def take_part(self, number: int, client: fr.Client) -> None:
        def train(model: State, round_: fr.Round) -> tuple[State, int, dict[str, float]]:
            self.asked += 1
            while not self.open.wait(0.05) and not round_.is_over():
                pass
            update, num_examples, metrics = trained(number, model)
            return update, num_examples if self.num_examples is None else self.num_examples, metrics

        # Its channel is closed at the end.
        with suppress(fr.FedroundError):
            client.participate(train, lambda model, _: report(number, model), until_finished=False)

    def start(self, *options: str) -> None:
        """Starts `fedround relay`."""
        tokens = {"FEDROUND_TOKEN": self.own_token, "FEDROUND_PARENT_TOKEN": self.token}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
        argv = ["--server", self.server.address, "relay", "--parent", self.parent.address, *options]
        environment["TMPDIR"] = str(self.temporary)
        self.temporary.mkdir(exist_ok=True)
        self.program = fork_server().fork(argv, stderr=self.folder / "relay.log", environment=environment | tokens)

    @property
    def temporary(self) -> Path:
        """The folder for temporary files of the relay."""
        return self.folder / "temporary"

    def kill(self) -> None:
        if self.program is not None:
            self.program.kill()
            self.program.wait()
            self.program.stdout.close()
            self.program = None

    @property
    def trainings(self) -> list[Training]:
        """Those at its own server, the newest first."""
        return list(self.actor.trainings("ACTOR"))


@contextmanager
def site(parent: Server, token: str, folder: Path, numbers: range) -> Iterator[Site]:
    folder.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(Server(folder / "data"))
        own_token, made = users(server, len(numbers))
        actor = stack.enter_context(fr.connect(server.address, own_token))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, len(numbers))))
        one = Site(server, parent, token, own_token, actor, folder)
        stack.callback(one.open.set)
        for number, (_, client_token) in zip(numbers, made, strict=True):
            client = fr.connect(server.address, client_token)
            stack.callback(client.close)
            pool.submit(one.take_part, number, client)
        stack.callback(one.kill)
        one.open.set()
        yield one


@dataclass
class Tree:
    """A parent with an actor, and relays."""

    actor: fr.Client
    ids: list[str]
    sites: list[Site]
    token: str

    def begin(self, **spec: Any) -> Training:
        spec = {"name": "t", "target_num_updates": 2, "client_ids": self.ids, "allow_relays": True, **spec}
        made = self.actor.create_training(MODEL, **spec)
        return self.actor.start_training(made.training_id)

    def digests(self, training: Training) -> list[str]:
        ended = self.actor.wait(training.training_id, 90)
        return [one.sha256 for one in self.actor.model_versions(ended.model_id)]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Two relays with two clients each."""
    with ExitStack() as stack:
        parent = stack.enter_context(Server(tmp_path / "parent"))
        actor_token, made = users(parent, 2)
        sites = [
            stack.enter_context(site(parent, token, tmp_path / f"site {index}", range(2 * index, 2 * index + 2)))
            for index, (_, token) in enumerate(made)
        ]
        actor = stack.enter_context(fr.connect(parent.address, actor_token))
        yield Tree(actor, [id_ for id_, _ in made], sites, actor_token)


def flat(server: Server, **spec: Any) -> tuple[list[str], list[fr.Client]]:
    """The versions of a training of all clients at one server."""
    token, made = users(server, 4)
    with fr.connect(server.address, token) as actor, ThreadPoolExecutor(4) as pool:
        training = actor.create_training(
            MODEL, **{"name": "t", "target_num_updates": 2, "client_ids": [id_ for id_, _ in made], **spec}
        )

        def work(number: int) -> None:
            with fr.connect(server.address, made[number][1]) as client:
                client.participate(lambda model, _: trained(number, model), lambda model, _: report(number, model))

        working = [pool.submit(work, number) for number in range(4)]
        actor.start_training(training.training_id)
        for one in working:
            one.result(90)
        return [one.sha256 for one in actor.model_versions(training.model_id)]


def failures(tree: Tree, training: Training) -> dict[str, str]:
    """The reasons of those that failed in the first round."""
    round_ = tree.actor.get_round(training.training_id, 0)
    return {each.user_id: each.failure.reason for each in round_.participants if each.HasField("failure")}


def means(actor: fr.Client, model_id: str) -> list[tuple[str, int, float]]:
    return [
        (str(one.kind), one.num_examples, one.metrics["loss"]) for one in actor.metrics(model_id) if not one.reporter_id
    ]


@pytest.mark.parametrize("optimizer", [False, True])
def test_the_versions_are_those_of_the_flat_training(tree: Tree, *, optimizer: bool) -> None:
    spec = {"aggregation": fr.FedAdam() if optimizer else None, "metric_names": ["loss"], "config": {"lr": 0.5}}
    for one in tree.sites:
        one.start()
    training = tree.begin(**spec)
    found = tree.digests(training)
    server = tree.sites[0].parent
    assert found == flat(server, **spec, **({"allow_relays": True} if optimizer else {}))
    # Two rounds of training, and an evaluation after each.
    reports = means(tree.actor, training.model_id)
    assert [(examples, loss) for _, examples, loss in reports] == [
        (10, pytest.approx(2.0)),
        (10, pytest.approx(2.0)),
    ] * 2
    # Nothing is left at the relays.
    until(lambda: not any(one.trainings for one in tree.sites))
    assert not any(list(one.actor.models()) for one in tree.sites)


def test_a_relay_that_is_killed_in_a_round_goes_on_with_it(tree: Tree) -> None:
    one, other = tree.sites
    one.open.clear()
    one.start()
    other.start()
    training = tree.begin(target_num_updates=1)
    until(lambda: one.asked == 2)
    one.kill()
    one.server.kill()
    one.server.start()
    one.start()
    one.open.set()
    assert tree.digests(training) == flat(one.parent, target_num_updates=1)
    # Killed between its sum and what follows, it sends the same one again.
    assert one.asked == 2 or one.asked == 4


def test_the_files_of_a_relay_that_was_killed_are_removed(tree: Tree) -> None:
    one, _ = tree.sites
    one.open.clear()
    one.start()
    training = tree.begin(target_num_updates=1, client_ids=tree.ids[:1])
    until(lambda: one.asked == 2)
    one.kill()
    [left] = one.temporary.iterdir()
    one.start()
    until(lambda: not left.exists())
    one.open.set()
    tree.digests(training)
    until(lambda: not any(one.temporary.iterdir()))


def test_a_relay_that_is_killed_after_its_sum_was_sent_does_not_send_it_twice(tree: Tree) -> None:
    one, other = tree.sites
    other.open.clear()
    one.start()
    other.start()
    training = tree.begin(target_num_updates=1)
    until(lambda: tree.actor.get_training(training.training_id).updates_arrived == 1)
    one.kill()
    one.start()
    other.open.set()
    assert tree.digests(training) == flat(one.parent, target_num_updates=1)
    assert one.asked == 2


def test_a_round_goes_on_without_a_relay_that_has_no_clients(tree: Tree) -> None:
    one, other = tree.sites
    other.start("--label", "site=nowhere")
    one.start()
    training = tree.begin(target_num_updates=1)
    tree.digests(training)
    assert failures(tree, training) == {tree.ids[1]: "NO_PARTICIPANTS"}


def test_the_clients_of_a_relay_end_before_the_deadline_of_the_parent(tree: Tree) -> None:
    _, other = tree.sites
    other.open.clear()
    for each in tree.sites:
        each.start("--margin", "10")
    training = tree.begin(target_num_updates=1, deadline=16, min_updates=1, wait_after_min=100)
    until(lambda: other.trainings)
    # All clients of the other one are late, and it reports that they have missed their deadline.
    tree.digests(training)
    assert failures(tree, training) == {tree.ids[1]: "DEADLINE_MISSED"}


def test_a_round_that_the_parent_closes_is_stopped_at_the_relay(tree: Tree) -> None:
    one, other = tree.sites
    other.open.clear()
    one.start()
    other.start()
    training = tree.begin(target_num_updates=1, min_updates=1, wait_after_min=0)
    until(lambda: other.asked)
    tree.digests(training)
    until(lambda: not other.trainings)


def test_the_versions_of_a_relay_of_relays_are_those_of_the_flat_training(tree: Tree, tmp_path: Path) -> None:
    # The parent of the two relays is the server of a third one.
    spec = {"metric_names": ["loss"]}
    with Server(tmp_path / "root") as root, ExitStack() as stack:
        token, [(id_, relay_token)] = users(root, 1)
        middle = Site(tree.sites[0].parent, root, relay_token, tree.token, tree.actor, tmp_path)
        stack.callback(middle.kill)
        middle.start("--allow-relays")
        for one in tree.sites:
            one.start()
        actor = stack.enter_context(fr.connect(root.address, token))
        top = Tree(actor, [id_], [], token)
        training = top.begin(**spec)
        assert top.digests(training) == flat(root, **spec)
        reports = means(actor, training.model_id)
        assert [(examples, loss) for _, examples, loss in reports] == [(10, pytest.approx(2.0))] * 4
        until(lambda: not middle.trainings and not any(one.trainings for one in tree.sites))


def test_a_relay_whose_clients_have_no_examples_sends_what_does_not_count(tree: Tree) -> None:
    one, other = tree.sites
    one.num_examples = 0
    one.start()
    other.start()
    training = tree.begin(target_num_updates=1)
    tree.digests(training)
    assert failures(tree, training) == {}
    assert tree.actor.get_training(training.training_id).updates_arrived == 2


def test_relays_of_single_trainings_run_side_by_side(tree: Tree) -> None:
    one, other = tree.sites
    other.open.clear()
    first, second = (tree.begin(target_num_updates=1, name=name) for name in "ab")
    one.start()
    other.start("--training", second.training_id)
    other.open.set()
    assert tree.digests(second) == flat(one.parent, target_num_updates=1)
    assert tree.actor.get_training(first.training_id).updates_arrived == 1
    program = other.program
    assert program is not None
    assert program.wait() == 0


@pytest.mark.parametrize("options", [(), ("--allow-relays",)])
def test_clients_of_a_relay_may_send_sums_only_if_it_allows_relays(tree: Tree, options: tuple[str, ...]) -> None:
    one, _ = tree.sites
    one.open.clear()
    one.start(*options)
    tree.begin(client_ids=tree.ids[:1])
    until(lambda: one.trainings)
    assert one.trainings[0].spec.allow_relays is bool(options)


def test_a_training_that_allows_no_relays(tree: Tree) -> None:
    one, _ = tree.sites
    one.start()
    training = tree.begin(client_ids=tree.ids[:1], allow_relays=False)
    until(lambda: tree.actor.get_training(training.training_id).state == TRAINING_STATE_ERROR)
    ended = tree.actor.get_training(training.training_id)
    assert "RELAYS_NOT_ALLOWED" in ended.error.message
    assert one.asked == 0
