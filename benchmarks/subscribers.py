"""Measures one server that holds many subscriptions: what each costs, how soon an event reaches all, and storms.

A server for each of two shapes, which lets all of them return at once (see docs/limits.md), and is else as by default:
all subscriptions over a few connections, and each over its own. All subscribers are participants of one training and in
the cohort of its open round, each with a token of its own. They live in processes of their own (crowd.py) and share the
machine with the server, so they speak just as much HTTP/2 as it takes; who is refused or cut off comes back with a
back-off. Users and tokens are written straight into the tables before the server starts, everything else goes through
the API.

    kB a subscription  anonymous memory of the server and all below it, over what it was before the first ones came
    idle CPU           seconds of CPU in a second, over a heartbeat period in which nothing happens
    CPU a delivery     of the server for one event to one subscriber, with what the round itself takes; and of the
                       subscribers, which share the cores with it: an event cannot reach all sooner than what both take
                       together, spread over all cores
    delay              from a commit to the receipt by each subscriber: of the one event of a round that is repeated at
                       its deadline, of the two of a round's end, one behind the other on the same streams, of all timed
                       rounds together, and of the one of a removed training, which also ends the streams
    bare calls         an event to all, and the last one, from handlers that do nothing else (null_server.py)
    storm              all connections are cut by SIGKILL, and other processes, which stand ready, subscribe behind the
                       last sequence: seconds from the cut until all are subscribed again; then a round ends
    MiB left           memory over what it was at first, once all have gone and some seconds have passed
"""

import argparse
import hashlib
import resource
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import grpc
import numpy as np
from safetensors.numpy import save

from crowd import Crowds, Heard
from fedround.v1.audit_pb2 import ReadAuditRequest
from fedround.v1.audit_pb2_grpc import AuditServiceStub
from fedround.v1.round_pb2 import ReportFailureRequest, SubmitUpdateRequest, UpdateSpec
from fedround.v1.round_pb2_grpc import RoundServiceStub
from fedround.v1.training_pb2 import (
    ON_MISSED_RETRY,
    CreateTrainingRequest,
    RemoveTrainingRequest,
    RoundPolicy,
    StartTrainingRequest,
    TrainingSpec,
)
from fedround.v1.training_pb2_grpc import TrainingServiceStub
from fedround_server.domain.token import hash_token, new_token
from fedround_server.engine.process import allow_many_files
from fedround_server.store import Store
from fedround_server.store.tables.base import database_proxy
from fedround_server.store.tables.schema import TokenRow, UserRow
from measure import MIB, Running, anonymous, cpu_seconds, fedround_server, keep, tree
from streams import null_server

HEARTBEAT = 20.0
DEADLINE = 8
"""Seconds after which a round is repeated for nobody but the subscribers; all of them have heard of it by then."""
SETTLED = 15.0
"""Seconds after which memory is given back, if it is."""
PATIENCE = 120.0
MODEL = save({"weight": np.zeros(8, np.float32)})
Figures = dict[str, Any]


def make_users(folder: Path, count: int) -> dict[str, str]:
    """Writes clients straight into the tables of a server that does not run yet; returns their tokens by id."""
    now = datetime.now(UTC)
    made = {str(uuid.uuid4()): new_token() for _ in range(count)}
    folder.mkdir()
    with Store(folder / "fedround.db"), database_proxy.connection_context(), database_proxy.atomic():
        for start in range(0, count, 1000):
            some = list(made.items())[start : start + 1000]
            users = [{"user_id": id_, "name": id_, "role": "CLIENT", "create_time": now} for id_, _ in some]
            tokens = [{"token_hash": hash_token(token), "user_id": id_, "create_time": now} for id_, token in some]
            UserRow.insert_many(users).execute()
            TokenRow.insert_many(tokens).execute()
    return made


class Driver:
    """Steers the training, and takes part in it: one update closes a round."""

    def __init__(self, running: Running, tokens: dict[str, str], channel: grpc.Channel) -> None:
        self.admin = (("authorization", f"Bearer {running.token}"),)
        self._member = (("authorization", f"Bearer {next(iter(tokens.values()))}"),)
        self._rounds, self._audit = RoundServiceStub(channel), AuditServiceStub(channel)
        self._trainings = TrainingServiceStub(channel)
        self._clients = list(tokens)
        self.create(RoundPolicy(min_updates=1))
        self.start()

    def create(self, policy: RoundPolicy) -> None:
        """Creates another training of all subscribers, and goes on with that."""
        spec = TrainingSpec(
            name="subscribers", target_num_updates=10_000, client_ids=self._clients, round_policy=policy
        )
        messages = iter([CreateTrainingRequest(spec=spec, chunk=MODEL)])
        self.training_id = self._trainings.CreateTraining(messages, metadata=self.admin).training.training_id
        self._round, self._audited = 0, 0

    def start(self) -> None:
        """Starts the training."""
        self._trainings.StartTraining(StartTrainingRequest(training_id=self.training_id), metadata=self.admin)

    def close_round(self) -> None:
        """Has the round closed, and the next one opened."""
        spec = UpdateSpec(
            training_id=self.training_id,
            round=self._round,
            num_examples=1,
            sha256=hashlib.sha256(MODEL).hexdigest(),
            size_bytes=len(MODEL),
        )
        self._rounds.SubmitUpdate(iter([SubmitUpdateRequest(spec=spec, chunk=MODEL)]), metadata=self._member)
        self._round += 1

    def remove(self) -> None:
        """Removes the training."""
        request = RemoveTrainingRequest(training_id=self.training_id, force=True)
        self._trainings.RemoveTraining(request, metadata=self.admin)

    def commit_time(self) -> float:
        """Returns when the last of these was done: this time is the last thing that is written before the commit."""
        last = 0.0
        request = ReadAuditRequest(chain=self.training_id, after_sequence=self._audited)
        for message in self._audit.ReadAudit(request, metadata=self.admin):
            for entry in message.entries:
                self._audited = entry.sequence
                if entry.action in ("round_opened", "round_extended", "training_removed"):
                    last = entry.time.ToMicroseconds() / 1e6
        return last


class Steering(Protocol):
    """What makes events."""

    training_id: str

    def remove(self) -> None:
        """Has all get the last event, and their streams ended."""

    def commit_time(self) -> float:
        """Returns when the last thing was done."""


class NullDriver:
    """Steers handlers that do nothing but send events."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.training_id = str(uuid.uuid4())
        self._rounds, self._trainings = RoundServiceStub(channel), TrainingServiceStub(channel)
        self._last = 0.0

    def extend_round(self) -> None:
        """Sends all an event."""
        self._last = time.time()
        self._rounds.ReportFailure(ReportFailureRequest())

    def remove(self) -> None:
        """Sends all the last event."""
        self._last = time.time()
        self._trainings.RemoveTraining(RemoveTrainingRequest())

    def commit_time(self) -> float:
        """Returns when the last of these was done."""
        return self._last


DriverT = TypeVar("DriverT", bound=Steering)


class Audience(Generic[DriverT]):
    """The subscribers of one server, and how soon they hear of something."""

    def __init__(self, options: argparse.Namespace, running: Running, tokens: Sequence[str], driver: DriverT) -> None:
        self._options, self._running, self._driver = options, running, driver
        self._tokens, self._count = tokens, len(tokens)

    def _tell_all(self, crowds: Crowds, act: Callable[[], None], events: int) -> dict[str, list[float]]:
        """Does something of which all are told in so many events, and returns the delays by kind of event."""
        act()
        whole, end = Heard(), time.monotonic() + PATIENCE
        while sum(map(len, whole.times.values())) < events * self._count:
            if time.monotonic() > end:
                raise SystemExit(f"not all heard: { ({one: len(found) for one, found in whole.times.items()}) }")
            time.sleep(0.2)
            whole.add(crowds.report())
        if whole.disorder or [len(found) for found in whole.times.values()] != [self._count] * events:
            raise SystemExit("not each event came once and in order")
        commit = self._driver.commit_time()
        self._last = max(whole.times)
        return {whole.kinds[one]: [heard - commit for heard in found] for one, found in whole.times.items()}

    def _until_all(self, crowds: Crowds) -> Heard:
        whole, end = Heard(), time.monotonic() + PATIENCE
        while whole.complete is None:
            if time.monotonic() > end:
                raise SystemExit(f"{whole.subscribed} are subscribed after {PATIENCE:g} s: {whole.errors}")
            time.sleep(0.2)
            heard = crowds.report()
            whole.add(heard)
            whole.subscribed, whole.complete = heard.subscribed, heard.complete
        return whole

    def _subscribed(self, connections: int, after: int | None) -> Crowds:
        """Has all subscribe, over so many connections, and waits until they are."""
        crowds = self._crowds()
        crowds.subscribe(self._tokens, connections, after)
        self._until_all(crowds)
        return crowds

    def _crowds(self) -> Crowds:
        return Crowds(self._options.processes, self._running.address, self._driver.training_id)

    def _cpu(self) -> float:
        return cpu_seconds(tree(self._running.pid))


class BareCalls(Audience[NullDriver]):
    """The subscribers of handlers that do nothing but send: what gRPC's calls take alone, in the same run."""

    def measure(self, connections: int) -> Figures:
        """Measures events, and the end of all streams."""
        crowds = self._subscribed(connections, None)
        spent = self._cpu()
        told = [self._tell_all(crowds, self._driver.extend_round, 1) for _ in range(self._options.rounds)]
        sent = self._cpu()
        delays = {"round_extended": spread([delay for delays in told for delay in delays["round_extended"]])}
        delays["training_removed"] = spread(self._tell_all(crowds, self._driver.remove, 1)["training_removed"])
        time.sleep(3)
        ended = self._cpu()
        crowds.leave()
        return {
            "cpu_a_delivery_us": round((sent - spent) * 1e6 / self._count / len(told)),
            "cpu_an_end_us": round((ended - sent) * 1e6 / self._count),
            **delays,
        }


class Bench(Audience[Driver]):
    """One server, its subscribers, and what is measured of them."""

    def __init__(self, options: argparse.Namespace, running: Running, tokens: dict[str, str], driver: Driver) -> None:
        super().__init__(options, running, list(tokens.values()), driver)
        self._base = 0

    def warm_up(self) -> None:
        """Has some subscribers come and go, and notes what memory there is then."""
        crowds = self._crowds()
        crowds.subscribe(self._tokens[:100], 10, None)
        self._until_all(crowds)
        crowds.leave()
        time.sleep(SETTLED)
        self._base = self._memory()

    def shape(self, connections: int, storms: int) -> Figures:
        """Measures one shape."""
        figures: Figures = {"connections": connections, "storms": [], "mib_left_between": None}
        crowds = self._subscribed(connections, None)
        time.sleep(3)
        figures["kb_a_subscription"] = round((self._memory() - self._base) / self._count / 1000, 1)
        spent, start = self._cpu(), time.monotonic()
        time.sleep(self._options.idle)
        figures["idle_cpu"] = round((self._cpu() - spent) / (time.monotonic() - start), 3)
        spent, theirs = self._cpu(), crowds.report().cpu
        told = [self._tell_all(crowds, self._driver.close_round, 2) for _ in range(self._options.rounds)]
        deliveries = 2 * self._count * len(told)
        figures["cpu_a_delivery_us"] = round((self._cpu() - spent) * 1e6 / deliveries)
        figures["subscribers_cpu_a_delivery_us"] = round((crowds.report().cpu - theirs) * 1e6 / deliveries)
        for kind in ("round_closed", "round_started"):
            figures[kind] = spread([delay for delays in told for delay in delays[kind]])
        figures["kb_a_subscription_later"] = round((self._memory() - self._base) / self._count / 1000, 1)
        for number in range(storms):
            if number:
                crowds.leave()
                time.sleep(SETTLED)
                figures["mib_left_between"] = self._left()
                crowds = self._subscribed(connections, self._last)
            crowds, storm = self._storm(crowds, connections)
            figures["storms"].append(storm)
        figures |= {kind: spread(delays) for kind, delays in self._tell_all(crowds, self._driver.remove, 1).items()}
        crowds.leave()
        figures["round_extended"] = spread(self._alone(connections))
        time.sleep(SETTLED)
        return figures | {"mib_left": self._left()}

    def _alone(self, connections: int) -> list[float]:
        """Returns the delays of events that come alone: of rounds that are repeated at their deadline."""
        policy = RoundPolicy(on_missed=ON_MISSED_RETRY, max_retries=1000)
        policy.deadline.FromSeconds(DEADLINE)
        self._driver.create(policy)
        crowds = self._subscribed(connections, None)
        self._tell_all(crowds, self._driver.start, 2)
        told = [self._tell_all(crowds, lambda: None, 1) for _ in range(self._options.rounds)]
        self._driver.remove()
        crowds.leave()
        return [delay for delays in told for delay in delays["round_extended"]]

    def _storm(self, crowds: Crowds, connections: int) -> tuple[Crowds, Figures]:
        fresh, spent = self._crowds(), self._cpu()
        cut = time.time()
        crowds.kill()
        fresh.subscribe(self._tokens, connections, self._last)
        heard = self._until_all(fresh)
        assert heard.complete is not None
        storm: Figures = {
            "seconds": round(heard.complete - cut, 1),
            "cpu": round(self._cpu() - spent, 1),
            "errors": dict(heard.errors),
        }
        told = self._tell_all(fresh, self._driver.close_round, 2)
        later = fresh.report()
        storm["errors_left"] = self._count - later.subscribed + later.errors.total()
        return fresh, storm | {kind: spread(delays) for kind, delays in told.items()}

    def _memory(self) -> int:
        return anonymous(tree(self._running.pid))

    def _left(self) -> float:
        return round((self._memory() - self._base) / MIB, 1)


def bare_calls(options: argparse.Namespace, tokens: Sequence[str], connections: int) -> Figures:
    """Returns what events take with handlers that do nothing else."""
    with null_server() as (address, pid), grpc.insecure_channel(address) as channel:
        return BareCalls(options, Running(address, "", pid), tokens, NullDriver(channel)).measure(connections)


def spread(values: Sequence[float]) -> Figures:
    """Returns what half, 99 of 100, and all of some seconds are within."""
    found = sorted(values)
    return {
        "p50": round(statistics.median(found), 2),
        "p99": round(found[int(0.99 * (len(found) - 1))], 2),
        "max": round(found[-1], 2),
    }


def show(name: str, figures: Figures) -> None:
    """Prints the figures of a shape."""
    later = figures["kb_a_subscription_later"]
    print(f"{name}: {figures['connections']} connections")
    print(f"  kB a subscription  {figures['kb_a_subscription']}, {later} after some rounds")
    print(f"  idle CPU           {figures['idle_cpu']}")
    own, theirs = figures["cpu_a_delivery_us"], figures["subscribers_cpu_a_delivery_us"]
    print(f"  CPU a delivery     {own} us, and of the subscribers {theirs} us")
    for kind in ("round_extended", "round_closed", "round_started", "training_removed"):
        print(f"  {kind:19}{figures[kind]} s")
    for storm in figures["storms"]:
        print(
            f"  storm              {storm['seconds']} s, {storm['cpu']} s of CPU; errors: {storm['errors'] or 'none'}"
        )
        print(f"                     errors left {storm['errors_left']}, then round_started {storm['round_started']} s")
    print(f"  bare calls         {figures['bare_calls']}")
    print(f"  MiB left           {figures['mib_left']}, between storms {figures['mib_left_between']}", flush=True)


def main() -> None:
    """Measures both shapes, prints them, and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=100, help="of all subscribers together, in the first shape")
    parser.add_argument("--processes", type=int, default=2, help="that the subscribers live in")
    parser.add_argument("--rounds", type=int, default=3, help="whose ends are timed in each shape")
    parser.add_argument("--storms", type=int, default=2, help="in the second shape")
    parser.add_argument("--idle", type=float, default=HEARTBEAT, help="seconds in which nothing happens")
    options = parser.parse_args()
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    allow_many_files()
    count, files = options.subscribers, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < count + 200:
        raise SystemExit(f"{count} connections want {count + 200} open files, and there may be {files}: see ulimit -Hn")
    figures: Figures = {"subscribers": count}
    names = ("max-waiting-calls", "max-unauthenticated-connections", "max-unauthenticated-connections-per-address")
    settings = [f"--{name}={2 * count}" for name in names]
    for shape, connections, storms in (("few", options.connections, 0), ("own", count, options.storms)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "data"
            tokens = make_users(folder, count)
            with fedround_server(folder, *settings) as running, grpc.insecure_channel(running.address) as channel:
                bench = Bench(options, running, tokens, Driver(running, tokens, channel))
                bench.warm_up()
                figures[shape] = bench.shape(connections, storms)
        figures[shape]["bare_calls"] = bare_calls(options, list(tokens.values()), connections)
        show(shape, figures[shape])
    keep("subscribers", figures)


if __name__ == "__main__":
    main()
