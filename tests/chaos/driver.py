"""Kills a server again and again while clients use it, and checks what it has left.

A run is a row of campaigns. Each has a new data directory and database, some kills, then a quiet time in which all that
was begun comes to its end, then the check of the invariants.
"""

import itertools
import os
import random
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

from chaos.desk import Desk, Lost
from chaos.errands import ERRANDS, errand
from chaos.facts import load
from chaos.history import History
from chaos.invariants import Violation, check
from chaos.lives import PATIENCE, Life, Lives
from chaos.points import STEPS, kill_points
from chaos.postgres import Postgres
from chaos.story import Story

STORIES = 3
# Those of the kills that come at random moments; the others come at points of the commit protocol.
RANDOM = 0.3
OTHERS = 0.02
LONGEST_LIFE = 0.4
LONGEST_OUTAGE = 5.0
# A point that is not reached by then is given up, and the kill comes all the same.
REACHED_IN = 4.0
# What a server does now and then, and before it ends in good order.
AT_THE_END = ("audit.", "user.record_last_seen.")


@dataclass
class Tally:
    """What a run has done and found."""

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
            "start_seconds": _quantiles(self.starts),
            "recovery_seconds": _quantiles(self.recoveries),
            "settled_seconds": _quantiles(self.settled),
        }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(int(len(ordered) * q), len(ordered) - 1)], 4) for name, q in at.items() if ordered}


class Campaign:
    """One data directory, its clients, and its kills."""

    def __init__(self, folder: Path, postgres: Postgres | None, points: Sequence[str], seed: str, tally: Tally) -> None:
        self._folder = folder
        self._points = points
        self._postgres = postgres
        self._database = "" if postgres is None else postgres.new_database()
        self._seed = seed
        self._draw = random.Random(seed)
        self._tally = tally
        self._kind = "sqlite" if postgres is None else "postgresql"
        self._wanted = ""
        self._over = threading.Event()
        self._life: Life | None = None

    def run(self, kills: int) -> list[Violation]:
        """Kills so often, lets all come to an end, and checks."""
        with ExitStack() as stack:
            lives = stack.enter_context(Lives(self._folder, self._database))
            self._first_start(lives)
            history = History(self._folder / "history.jsonl")
            stack.callback(history.close)
            desk = Desk(lives.address, history, lives.admin_token, self._hear)
            stack.callback(desk.close)
            pool = stack.enter_context(ThreadPoolExecutor(STORIES + 1))
            stack.callback(self._over.set)
            ends = [pool.submit(self._tell, desk, number) for number in range(STORIES)]
            ends += [pool.submit(self._run_errands, desk)]
            for _ in range(kills):
                self._kill(lives)
            # The last life is a whole one, and it begins like all others: by taking up what was left.
            life = self._live(lives)
            self._over.set()
            for end in ends:
                end.result(PATIENCE)
            self._tally.settled.append(time.monotonic() - life.born)
            lives.kill()
            # Once more, so that what is swept at a start is swept; and the server may say goodbye.
            self._live(lives)
            for number, run in enumerate(dict.fromkeys(ERRANDS.values())):
                run(desk, f"{self._seed} {number}")
            life = lives.stop()
            assert life.code == 0, lives.log.read_text()
            self._tally.reached |= lives.reached
            return self._check(history, lives)

    def _first_start(self, lives: Lives) -> None:
        """Starts a server on nothing; its first moments, when the tables are made, are worth some kills, too."""
        life = lives.start()
        time.sleep(self._draw.uniform(0, 0.1))
        lives.kill()
        self._count(life, "at the first start")
        life = lives.start(self._draw.choice([f"user.create.{step}" for step in STEPS]))
        if lives.wait_serving(life):
            # The first one has made the admin already.
            lives.kill()
        self._count(life, "at the first start")
        assert lives.wait_serving(lives.start()), lives.log.read_text()
        lives.kill()

    def _kill(self, lives: Lives) -> None:
        """One life, from its birth to its violent death."""
        chance = self._draw.random()
        if chance < RANDOM:
            self._kill_at_random(lives)
        elif chance < RANDOM + OTHERS:
            self._kill_another(lives)
        else:
            self._kill_at_a_point(lives)

    def _kill_at_random(self, lives: Lives) -> None:
        life = self._start(lives)
        time.sleep(self._draw.uniform(0, LONGEST_LIFE))
        lives.kill()
        self._count(life, "at random")

    def _kill_at_a_point(self, lives: Lives) -> None:
        point = self._draw.choice(self._points)
        self._wanted = point
        times = 1 if point.startswith(("start.", *AT_THE_END)) else self._draw.choice([1, 1, 1, 2, 3])
        life = self._start(lives, f"{point}:{times}")
        serves = lives.wait_serving(life)
        if serves and point.startswith(AT_THE_END):
            time.sleep(self._draw.uniform(0, LONGEST_LIFE))
            os.kill(life.pid, signal.SIGTERM)
        if serves and not lives.wait_ended(life, REACHED_IN):
            lives.kill()
            point = f"at random, waiting for {point}"
        self._wanted = ""
        self._count(life, point)

    def _kill_another(self, lives: Lives) -> None:
        """Kills the worker, or PostgreSQL, under a server that goes on."""
        life = self._live(lives)
        time.sleep(self._draw.uniform(0, LONGEST_LIFE))
        if self._postgres is not None and self._draw.random() < 0.5:
            self._postgres.kill()
            self._tally.points["PostgreSQL"] += 1
        else:
            for child in Path(f"/proc/{life.pid}/task/{life.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            self._tally.points["the worker"] += 1
        time.sleep(self._draw.uniform(0, LONGEST_OUTAGE))
        lives.kill()
        self._count(life, "behind another kill")

    def _live(self, lives: Lives) -> Life:
        life = self._start(lives)
        assert lives.wait_serving(life), lives.log.read_text()
        self._note(life)
        return life

    def _start(self, lives: Lives, failpoint: str | None = None) -> Life:
        self._life = None
        life = self._life = lives.start(failpoint)
        return life

    def _count(self, life: Life, point: str) -> None:
        assert life.code == -9, f"a server ended with {life.code} instead of being killed at {point}"
        self._tally.kills[self._kind] += 1
        self._tally.points[point] += 1
        self._note(life)

    def _note(self, life: Life) -> None:
        if life.serving is not None:
            self._tally.starts.append(life.serving - life.born)

    def _tell(self, desk: Desk, number: int) -> None:
        """Tells one story after the other."""
        for chapter in itertools.count():
            if self._over.is_set():
                return
            self._try(desk, Story(desk, f"{self._seed} {number} {chapter}").tell)

    def _run_errands(self, desk: Desk) -> None:
        for number in itertools.count():
            if self._over.wait(0.01):
                return
            run = errand(self._wanted)
            if run is not None:
                self._try(desk, lambda run=run, seed=str(number): run(desk, seed))

    def _hear(self) -> None:
        """Notes when each server answers first: then it has recovered."""
        life = self._life
        if life is not None and life.answered is None:
            life.answered = time.monotonic()
            self._tally.recoveries.append(life.answered - life.born)

    def _try(self, desk: Desk, run: Callable[[], object]) -> None:
        try:
            run()
        except Lost:
            pass  # it is in the history, and the check finds it there
        except Exception as error:
            desk.history.add("surprise", reason=repr(error), message="in the driver itself")
            raise

    def _check(self, history: History, lives: Lives) -> list[Violation]:
        facts = load(self._database, lives.data_dir)
        found = check(facts, history)
        counts = self._tally.counts
        counts["campaigns"] += 1
        counts["receipts"] += sum(1 for _ in history.of("receipt")) + sum(1 for _ in history.of("report"))
        counts["updates"] += len(facts["round_update"])
        counts["trainings"] += len(facts["training"])
        counts["aggregations"] += sum(row["state"] == "DONE" for row in facts["round"])
        counts["versions"] += sum(row["model_version"] for row in facts["training"])
        counts["events"] += len(facts["event"])
        counts["blobs"] += sum(1 for _ in (lives.data_dir / "objects").glob("*/*"))
        for violation in found:
            self._tally.violations.append(f"{self._kind}, seed {self._seed}: {violation}")
            sys.stderr.write("\n".join([str(violation), *history.about(violation.training_id), ""]))
        return found


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
        tally: Is told what happens.
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
