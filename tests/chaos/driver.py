"""Kills a server repeatedly while clients use it, and checks its data afterwards.

A run is a sequence of campaigns. Each has a new data directory and database, some kills, then a quiet period in which
all that was begun completes, then the check of the invariants.
"""

import itertools
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.buffering_rules import staleness
from chaos.facts import load
from chaos.history import History
from chaos.invariants import Violation, check
from chaos.points import STEPS, kill_points
from chaos.power_loss import lose_power
from chaos.random_submissions import SMALL
from chaos.random_training import RandomTraining
from chaos.retrying_client import RetryingClient, attempt
from chaos.server_process import TIMEOUT_SECONDS, RestartableServer, ServerProcess
from chaos.user_actions import USER_ACTIONS, action_for
from postgres import Postgres, create_database

CONCURRENT_TRAININGS = 3
# The fraction of the kills at random times; the others are at points of the commit protocol.
RANDOM = 0.3
OTHER_PROCESSES = 0.02
MAX_UPTIME = 0.4
MAX_OUTAGE = 5.0
# A point that is not reached by then is given up, and the server is killed anyway.
POINT_TIMEOUT = 4.0
# To create a training with a budget, each server first starts a process that accounts for it; and the journal is given
# up when all calls in progress have ended.
LATE = ("privacy.", "journal.settled")
LATE_TIMEOUT = 20.0
# What a server does periodically, and before it shuts down gracefully.
AT_SHUTDOWN = ("audit.", "user.record_last_seen.", "journal.settled")
# The fraction of the kills after which what was not forced to disk is damaged, too.
POWER = 0.4
MADE_ANEW = re.compile(r"made (\d+) files anew from the journal")


@dataclass
class Tally:
    """Statistics and findings of a run."""

    kills: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    starts: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "kills": sum(self.kills.values()),
            "kills_by_database": dict(sorted(self.kills.items())),
            "kills_by_point": dict(sorted(self.points.items())),
            **dict(sorted(self.counts.items())),
            "violations": self.violations,
            "points_not_reached": sorted(set(kill_points()) - self.reached),
            "start_seconds": quantiles(self.starts),
            "recovery_seconds": quantiles(self.recoveries),
            "settled_seconds": quantiles(self.settled),
        }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The median, the 99th percentile and the largest of some values; nothing if there are none."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(int(len(ordered) * q), len(ordered) - 1)], 4) for name, q in at.items() if ordered}


class Campaign:
    """One data directory, its clients, and its kills."""

    def __init__(self, folder: Path, postgres: Postgres | None, points: Sequence[str], seed: str, tally: Tally) -> None:
        self._folder = folder
        self._points = points
        self._postgres = postgres
        self._database = "" if postgres is None else create_database(postgres.uri)
        self._seed = seed
        self._draw = random.Random(seed)
        self._draw_power = random.Random(f"{seed} power")
        self._tally = tally
        self._kind = "sqlite" if postgres is None else "postgresql"
        self._target_point = ""
        self._ending = threading.Event()
        self._process: ServerProcess | None = None

    def run(self, kills: int) -> list[Violation]:
        """Kills the server so many times, lets all trainings end, and checks."""
        with ExitStack() as stack:
            server = stack.enter_context(RestartableServer(self._folder, self._database))
            self._first_start(server)
            history = History(self._folder / "history.jsonl")
            stack.callback(history.close)
            client = RetryingClient(server.address, history, server.admin_token, self._on_answer, server.data_dir)
            stack.callback(client.close)
            pool = stack.enter_context(ThreadPoolExecutor(CONCURRENT_TRAININGS + 1))
            stack.callback(self._ending.set)
            ends = [pool.submit(self._run_trainings, client, number) for number in range(CONCURRENT_TRAININGS)]
            ends += [pool.submit(self._run_actions, client)]
            for _ in range(kills):
                point = self._kill(server)
                if self._draw_power.random() < POWER:
                    self._lose_power(server, client, is_unsynced=point == "journal.written")
            # The last process runs undisturbed, and begins like all others: with recovery.
            process = self._start_serving(server)
            self._ending.set()
            for end in ends:
                end.result(TIMEOUT_SECONDS)
            self._tally.settled.append(time.monotonic() - process.start_time)
            process.kill()
            self._lose_power(server, client)
            # Once more, so that what is swept at a start is swept; and the server shuts down gracefully.
            process = self._start_serving(server)
            for number, run in enumerate(dict.fromkeys(USER_ACTIONS.values())):
                run(client, f"{self._seed} {number}")
            process.stop()
            assert process.code == 0, server.log.read_text()
            self._tally.reached |= server.reached
            return self._check(history, server)

    def _first_start(self, server: RestartableServer) -> None:
        """Starts a server on an empty directory, and kills it while it makes its tables."""
        process = server.start()
        time.sleep(self._draw.uniform(0, 0.1))
        process.kill()
        self._count(process, "at the first start")
        process = server.start(self._draw.choice([f"user.create.{step}" for step in STEPS]))
        if process.wait_serving():
            # The first one has made the admin already.
            process.kill()
        self._count(process, "at the first start")
        process = server.start()
        assert process.wait_serving(), server.log.read_text()
        process.kill()

    def _kill(self, server: RestartableServer) -> str:
        """Starts a server process and kills it; returns at which point, if at one."""
        chance = self._draw.random()
        if chance >= RANDOM + OTHER_PROCESSES:
            return self._kill_at_a_point(server)
        if chance < RANDOM:
            self._kill_at_random(server)
        else:
            self._kill_other_process(server)
        return ""

    def _lose_power(self, server: RestartableServer, client: RetryingClient, *, is_unsynced: bool = False) -> None:
        """Damages what a killed server had not forced to disk."""
        with client.damaging:
            lost = lose_power(server.data_dir, self._draw_power, is_unsynced=is_unsynced)
        self._tally.counts["power_losses"] += 1
        self._tally.counts["files_lost"] += lost

    def _kill_at_random(self, server: RestartableServer) -> None:
        process = self._start(server)
        time.sleep(self._draw.uniform(0, MAX_UPTIME))
        process.kill()
        self._count(process, "at random")

    def _kill_at_a_point(self, server: RestartableServer) -> str:
        point = self._draw.choice(self._points)
        self._target_point = point
        times = 1 if point.startswith(("start.", *AT_SHUTDOWN)) else self._draw.choice([1, 1, 1, 2, 3])
        before = server.count("journal.written")
        process = self._start(server, f"{point}:{times}")
        serves = process.wait_serving()
        if serves and point.startswith(AT_SHUTDOWN):
            time.sleep(self._draw.uniform(0, MAX_UPTIME))
            if point != "journal.settled" or _is_journal_used(server, before):
                process.terminate()
        if serves and not process.wait_ended(LATE_TIMEOUT if point.startswith(LATE) else POINT_TIMEOUT):
            process.kill()
            point = f"at random, waiting for {point}"
        self._target_point = ""
        if point.startswith("user.record_last_seen.") and process.code == 0:
            # Nothing has called it, so that it had no times to write.
            self._record_start(process)
            return ""
        self._count(process, point)
        return point

    def _kill_other_process(self, server: RestartableServer) -> None:
        """Kills the worker, or PostgreSQL, while the server runs."""
        process = self._start_serving(server)
        time.sleep(self._draw.uniform(0, MAX_UPTIME))
        if self._postgres is not None and self._draw.random() < 0.5:
            self._postgres.kill()
            self._tally.points["PostgreSQL"] += 1
        else:
            for worker in process.others():
                os.kill(worker, signal.SIGKILL)
            self._tally.points["the worker"] += 1
        time.sleep(self._draw.uniform(0, MAX_OUTAGE))
        process.kill()
        self._count(process, "behind another kill")

    def _start_serving(self, server: RestartableServer) -> ServerProcess:
        process = self._start(server)
        assert process.wait_serving(), server.log.read_text()
        self._record_start(process)
        return process

    def _start(self, server: RestartableServer, failpoint: str = "") -> ServerProcess:
        self._process = None
        process = self._process = server.start(failpoint)
        return process

    def _count(self, process: ServerProcess, point: str) -> None:
        assert process.code == -9, f"a server ended with {process.code} instead of being killed at {point}"
        self._tally.kills[self._kind] += 1
        self._tally.points[point] += 1
        self._record_start(process)

    def _record_start(self, process: ServerProcess) -> None:
        if process.serving is not None:
            self._tally.starts.append(process.serving - process.start_time)

    def _run_trainings(self, client: RetryingClient, number: int) -> None:
        """Runs one random training after the other."""
        for count in itertools.count():
            if self._ending.is_set():
                return
            training: RandomTraining | None = RandomTraining(client, f"{self._seed} {number} {count}")
            while training is not None and not self._ending.is_set():
                attempt(client, training.run)
                training = training.successor()

    def _run_actions(self, client: RetryingClient) -> None:
        for number in itertools.count():
            if self._ending.wait(0.01):
                return
            run = action_for(self._target_point)
            if run is not None:
                attempt(client, lambda run=run, seed=str(number): run(client, seed))

    def _on_answer(self) -> None:
        """Records when each server first answers: then it has recovered."""
        process = self._process
        if process is not None and process.answered is None:
            process.answered = time.monotonic()
            self._tally.recoveries.append(process.answered - process.start_time)

    def _check(self, history: History, server: RestartableServer) -> list[Violation]:
        facts = load(self._database, server.data_dir)
        found = check(facts, history)
        counts = self._tally.counts
        counts["campaigns"] += 1
        counts["receipts"] += sum(1 for _ in history.of("receipt")) + sum(1 for _ in history.of("report"))
        counts["updates"] += len(facts["round_update"])
        counts["large_updates"] += sum((row["size_bytes"] or 0) > SMALL for row in facts["round_update"])
        counts["files_made_anew"] += sum(map(int, MADE_ANEW.findall(server.log.read_text())))
        counts["trainings"] += len(facts["training"])
        trained = {row["model_id"] for row in facts["training"]}
        copies = [row for row in facts["model"] if row["source_model_id"] is not None]
        counts["continued_trainings"] += sum(row["model_id"] in trained for row in copies)
        counts["branches"] += sum(row["model_id"] not in trained for row in copies)
        counts["branch_versions"] += sum(row["version"] for row in copies if row["model_id"] not in trained)
        counts["dropped_updates"] += sum(bool(row["sha256"]) and not row["stored"] for row in facts["round_update"])
        counts["private_trainings"] += len(facts["privacy_account"])
        counts["charged_rounds"] += sum(row["rounds"] for row in facts["privacy_account"])
        counts["budgets_spent"] += sum(row["failure_reason"] == "PRIVACY_BUDGET" for row in facts["training"])
        counts["states"] += sum(row["kind"] != "posterior" for row in facts["artifact"])
        counts["aggregations"] += sum(row["state"] == "DONE" for row in facts["round"])
        counts["versions"] += sum(row["model_version"] for row in facts["training"])
        counts["events"] += len(facts["event"])
        counts["draws"] += sum('"chosen"' in row["facts"] for row in facts["audit"])
        for kind in ("WorkNotNeeded", "ParticipantFailed", "RoundExtended", "UpdateLost"):
            counts[kind] += sum(row["kind"] == kind for row in facts["event"])
        counts["stale_updates"] += sum(count > 0 for count in staleness(facts))
        counts["label_changes"] += sum(1 for _ in history.of("labelled"))
        counts["control_requests"] += len(facts["control_request"])
        counts["subscribed_events"] += sum(1 for _ in history.of("event"))
        counts["blobs"] += sum(1 for _ in (server.data_dir / "objects").glob("*/*"))
        for violation in found:
            self._tally.violations.append(f"{self._kind}, seed {self._seed}: {violation}")
            sys.stderr.write("\n".join([str(violation), *history.about(violation.training_id), ""]))
        return found


def _is_journal_used(server: RestartableServer, before: int) -> bool:
    """Waits until more processes than before have used the journal, but not long; returns whether they have."""
    end = time.monotonic() + POINT_TIMEOUT
    while server.count("journal.written") == before:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def run(
    kills: int,
    seed: str,
    folder: Path,
    tally: Tally,
    *,
    databases: Sequence[str] = ("sqlite", "postgresql"),
    points: Sequence[str] = (),
    per_campaign: int = 50,
    progress: Callable[[Tally], object] = lambda tally: None,
) -> None:
    """Runs campaigns on the databases in turn, until there were so many kills.

    Args:
        kills: How many.
        seed: Of all that is drawn.
        folder: For the data of the campaigns; that of one without a violation goes.
        tally: Collects what happens.
        databases: Which.
        points: What those of the points begin with that kills come at; all by default.
        per_campaign: How many kills a campaign has.
        progress: Is called behind each campaign.
    """
    chosen = [point for point in kill_points() if point.startswith(tuple(points or [""]))]
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres")) if "postgresql" in databases else None
        for number, database in enumerate(itertools.cycle(databases)):
            left = kills - sum(tally.kills.values())
            if left <= 0:
                return
            place = folder / f"campaign-{number}"
            place.mkdir(parents=True)
            used = postgres if database == "postgresql" else None
            violations = Campaign(place, used, chosen, f"{seed} {number}", tally).run(min(per_campaign, left))
            if not violations:
                shutil.rmtree(place)
            progress(tally)
