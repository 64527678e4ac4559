"""Kills and pauses the parts of an installation while clients use it, and checks its data afterwards.

The parts are three replicas with their workers, PostgreSQL and an object store. Each replica is killed again and again,
at points of the commit protocol and at random; meanwhile others of the parts are killed, or paused.
"""

import itertools
import json
import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.driver import quantiles
from chaos.facts import Facts, load
from chaos.followers import Followers
from chaos.history import History
from chaos.invariants import check
from chaos.points import all_points
from chaos.random_training import RandomTraining
from chaos.replica_process import Replica
from chaos.retrying_client import RetryingClient, attempt
from chaos.server_process import TIMEOUT_SECONDS, RestartableServer
from chaos.user_actions import USER_ACTIONS, action_for, damages
from fedround_server import objects
from postgres import Postgres, create_database
from seaweed import Seaweed

REPLICAS = 3
TRAININGS_PER_CLIENT = 2
FOLLOWERS = 6
# What is done beside the kills of replicas, how often each, and at most how many seconds after the one before.
STRIKES = {"worker": 4, "PostgreSQL session": 3, "PostgreSQL": 2, "object store": 2, "pause": 2, "long pause": 1}
STRIKE_SECONDS = 4.0
PARTS = ("PostgreSQL session", "PostgreSQL", "object store")
SHORT_PAUSE = 3.0
# Longer than a lease.
LONG_PAUSE = 17.0
STORE_DOWNTIME = 3.0
ACTION_SECONDS = 0.5
# Small files go to the object store without a journal; the others belong to starts and ends that no campaign has.
UNREACHED = ("blob.", "journal.", "start.settled", "start.claimed", "backup.", "model.keep_checksums.", "round.fail.")
# Nothing is damaged, and no file is larger than a part.
UNREACHED += ("round.reopen.", "aggregation.reopened", "object.parts_marked")
POINTS = [point for point in all_points() if not point.startswith(UNREACHED)]


@dataclass
class Parts:
    """What all replicas use: PostgreSQL, and the object store."""

    postgres: Postgres
    store: Seaweed


@dataclass
class Tally:
    """Statistics and findings of a run."""

    kills: Counter[str] = field(default_factory=Counter)
    pauses: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    silences: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stretches: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    settled: list[float] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)

    def kinds(self) -> dict[str, int]:
        """How often processes of each kind were killed; all places that are no kind are of replicas' servers."""
        others = {kind: self.kills[kind] for kind in ("worker", *PARTS)}
        return {"replica": self.kills.total() - sum(others.values()), **others}

    def summary(self) -> dict[str, Any]:
        """What a report has of it."""
        return {
            "kills": self.kills.total(),
            "kills_by_kind": self.kinds(),
            "kills_by_place": dict(sorted(self.kills.items())),
            "pauses": dict(sorted(self.pauses.items())),
            **dict(sorted(self.counts.items())),
            "violations": self.violations,
            "points_not_reached": sorted(set(POINTS) - self.reached),
            "failover_seconds": _failovers(self.silences),
            "longest_parts_of_failovers": _summary(self.stretches),
            "outage_seconds": _summary(self.outages),
            "settled_seconds": quantiles(self.settled),
        }


def _failovers(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The silences while another replica and all parts served, all of them, and those of each cause."""
    served = [time for what, times in seconds.items() if "," not in what for time in times]
    every = [time for times in seconds.values() for time in times]
    return {**_summary({"all": every, "another replica and all parts served": served}), "by_cause": _summary(seconds)}


def _summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {what: {"samples": len(times), **quantiles(times)} for what, times in sorted(seconds.items())}


class ReplicaCampaign:
    """A database and a place in the object store, their replicas and clients, and what is done to them."""

    def __init__(self, folder: Path, parts: Parts, seed: str, tally: Tally) -> None:
        """Starts nothing yet."""
        self._folder = folder
        self._parts = parts
        self._seed = seed
        self._tally = tally
        self._draw = random.Random(seed)
        self._database = create_database(parts.postgres.uri)
        self._url = f"s3://tests/{folder.name}"
        self._ending = threading.Event()
        self._replicas: list[Replica] = []
        self._followers: Followers

    def run(self, kills: int) -> list[str]:
        """Kills at least so many processes, lets all trainings end, and checks; returns what is wrong."""
        with ExitStack() as stack:
            self._replicas = [self._replica(stack, number) for number in range(REPLICAS)]
            for replica in self._replicas:
                # Nothing that is paused ends.
                stack.callback(replica.resume)
                replica.start()
            addresses = [replica.server.address for replica in self._replicas]
            # The first one has made the admin.
            token = self._replicas[0].server.admin_token
            history = History(self._folder / "history.jsonl")
            stack.callback(history.close)
            self._followers = stack.enter_context(Followers(",".join(addresses), token, FOLLOWERS))
            pool = stack.enter_context(ThreadPoolExecutor((TRAININGS_PER_CLIENT + 1) * REPLICAS))
            stack.callback(self._ending.set)
            # If the campaign fails, their threads end once they are closed.
            clients = [self._client(stack, history, token, addresses) for _ in range(REPLICAS)]
            ends = [
                pool.submit(work, client, f"{self._seed} {number} {part}")
                for number, client in enumerate(clients)
                for part, work in enumerate([self._run_actions, *[self._run_trainings] * TRAININGS_PER_CLIENT])
            ]
            self._disturb(self._tally.kills.total() + kills)
            begin = time.monotonic()
            if self._parts.store.has_ended:
                self._parts.store.start()
            for replica in self._replicas:
                replica.settle()
            self._ending.set()
            for end in ends:
                end.result(TIMEOUT_SECONDS)
            self._tally.settled.append(time.monotonic() - begin)
            self._followers.settle()
            for replica in self._replicas:
                replica.stop()
            return self._check(history)

    def _replica(self, stack: ExitStack, number: int) -> Replica:
        options = ("--log-level=warning", "--heartbeat-seconds=0.2", "--objects", self._url)
        folder = self._folder / f"replica{number}"
        server = RestartableServer(folder, self._database, options, self._parts.store.environment())
        draw = random.Random(f"{self._seed} {number}")
        return Replica(stack.enter_context(server), POINTS, draw, self._tally.kills, self._lose)

    def _client(self, stack: ExitStack, history: History, token: str, addresses: list[str]) -> RetryingClient:
        client = RetryingClient(",".join(addresses), history, token, lambda: None, self._folder / "nothing")
        stack.callback(client.close)
        return client

    def _lose(self, address: str, what: str, at: float) -> None:
        # There are none while the replicas start first.
        if hasattr(self, "_followers"):
            self._followers.lose(address, what, at)

    def _disturb(self, kills: int) -> None:
        """Kills and pauses until there were so many kills."""
        strike_at = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            killing: Future[None] | None = None
            while self._tally.kills.total() < kills or killing is not None:
                for replica in self._replicas:
                    replica.tend()
                    if killing is not None:
                        replica.excuse()
                if killing is not None:
                    self._followers.excuse("another part was away")
                elif not any(replica.is_serving for replica in self._replicas):
                    self._followers.excuse("no other replica served")
                if killing is not None and killing.done():
                    killing.result()
                    killing = None
                    strike_at = time.monotonic() + self._draw.uniform(0, STRIKE_SECONDS)
                if killing is None and self._parts.store.has_ended:
                    self._tally.counts["object_store_ended_by_itself"] += 1
                    killing = pool.submit(self._parts.store.start)
                if time.monotonic() >= strike_at and killing is None:
                    [what] = self._draw.choices(list(STRIKES), list(STRIKES.values()))
                    if what in PARTS:
                        killing = pool.submit(self._kill_part, what)
                    else:
                        self._strike(what)
                        strike_at = time.monotonic() + self._draw.uniform(0, STRIKE_SECONDS)
                time.sleep(0.01)

    def _strike(self, what: str) -> None:
        """Kills a worker, or pauses a replica."""
        serving = [replica for replica in self._replicas if replica.is_serving]
        if not serving:
            return
        replica = self._draw.choice(serving)
        if what == "worker":
            self._tally.kills[what] += replica.kill_workers()
            return
        replica.pause(LONG_PAUSE if what == "long pause" else self._draw.uniform(0, SHORT_PAUSE), what)
        self._tally.pauses[what] += 1

    def _kill_part(self, what: str) -> None:
        """Kills what all replicas use, and starts it again; takes seconds."""
        begin = time.monotonic()
        if what == "object store":
            self._parts.store.kill()
            time.sleep(self._draw.uniform(0, STORE_DOWNTIME))
            self._parts.store.start()
        elif what == "PostgreSQL":
            self._parts.postgres.kill()
        else:
            self._parts.postgres.kill_a_session(self._database, self._draw)
        self._tally.kills[what] += 1
        self._tally.outages[what].append(time.monotonic() - begin)

    def _run_trainings(self, client: RetryingClient, seed: str) -> None:
        """Runs one random training after the other."""
        for count in itertools.count():
            if self._ending.is_set():
                return
            attempt(client, RandomTraining(client, f"{seed} {count}").run)

    def _run_actions(self, client: RetryingClient, seed: str) -> None:
        """Does one rare thing after the other; damages nothing, since files are in the object store."""
        draw, actions = random.Random(seed), sorted({*USER_ACTIONS.values()} - {damages}, key=lambda one: one.__name__)
        for count in itertools.count():
            if self._ending.wait(ACTION_SECONDS):
                return
            # What reaches a point that a replica is to be killed at, half of the time.
            point = draw.choice(self._replicas).point
            run = action_for(point) if draw.random() < 0.5 else None
            if run in (None, damages):
                run = draw.choice(actions)
            attempt(client, lambda run=run, count=count: run(client, f"{seed} {count}"))

    def _check(self, history: History) -> list[str]:
        copy = self._folder / "copy"
        copy.mkdir(mode=0o700)
        os.environ.update(self._parts.store.environment())
        done = objects.copy(self._url, str(copy), verify=False, progress=lambda _: None)
        facts = load(self._database, copy)
        violations = check(facts, history)
        for violation in violations:
            sys.stderr.write("\n".join([str(violation), *history.about(violation.training_id), ""]))
        found = [*map(str, violations), *done.problems, *self._followers.failures]
        for replica in self._replicas:
            log = replica.server.log.read_text()
            found += replica.failures
            found += [f"{replica.server.log} has a traceback"] * ("Traceback" in log)
            self._tally.counts["failed_starts"] += replica.failed_starts
            self._tally.counts["rounds_taken_over"] += log.count("round_taken_over")
            self._tally.counts["leases_lost"] += log.count(": it goes on as ")
            self._tally.reached |= replica.server.reached
        for what, times in self._followers.silences.items():
            self._tally.silences[what] += times
        for what, times in self._followers.stretches.items():
            self._tally.stretches[what] += times
        self._count(facts, history)
        self._tally.violations += [f"seed {self._seed}: {one}" for one in found]
        return found

    def _count(self, facts: Facts, history: History) -> None:
        counts = self._tally.counts
        counts["campaigns"] += 1
        counts["acknowledged_updates"] += sum(1 for _ in history.of("receipt"))
        counts["acknowledged_reports"] += sum(1 for _ in history.of("report"))
        counts["events_received"] += sum(1 for _ in history.of("event"))
        counts["trainings"] += len(facts["training"])
        counts["aggregations"] += sum(row["state"] == "DONE" for row in facts["round"])
        counts["versions"] += sum(row["model_version"] for row in facts["training"])
        counts["files"] += sum(1 for _ in (facts.data_dir / "objects").glob("*/*"))


def write_report(path: Path, seed: str, seconds: float, tally: Tally) -> None:
    """Writes what a run has done and found so far."""
    path.write_text(json.dumps({"seed": seed, "seconds": round(seconds, 1), **tally.summary()}, indent=2) + "\n")
