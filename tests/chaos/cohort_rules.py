"""Invariants of cohorts: each is drawn once, by the rule, of those that can be asked; only its members are told.

The ledger is replayed: who is registered, who has the labels, and what was drawn from these. The draw is made anew as
docs/cohorts.md describes it, without the server's code.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from chaos.facts import Facts, Row
from chaos.history import History
from chaos.lookups import events_of

Findings = Iterator[tuple[str, str]]
OF_A_ROUND = ("RoundStarted", "RoundExtended", "RoundClosed", "WorkNotNeeded")


def cohorts_are_drawn_by_the_rule(facts: Facts, history: History) -> Findings:
    """Each cohort was drawn once; it has the members, and as many, that the rule makes of the seed and the ledger."""
    replay = _Replay(facts)
    for row in facts.entries:
        yield from replay.read(row, json.loads(row["facts"]))
    rows = facts.by("cohort", "training_id", "number")
    for key, members in rows.items():
        stored = {member["user_id"] for member in members}
        if stored != replay.members.get(key):  # type: ignore[call-overload]
            yield key[0], f"round {key[1]} has the cohort {stored}, drawn were {replay.members.get(key)}"  # type: ignore[index, call-overload]


def draws_are_as_told(facts: Facts, history: History) -> Findings:
    """What GetRound ever said of a draw is what the ledger says: no draw that was seen was made anew."""
    chosen: dict[tuple[str, int], dict[int, tuple[dict[str, Any], set[str]]]] = defaultdict(dict)
    for row in facts.entries:
        if row["action"] in ("round_opened", "round_extended"):
            found, draws = json.loads(row["facts"]), chosen[row["training_id"], int(row["subject"])]
            told, before = draws[max(draws)] if draws else ({}, set())
            # A round with differential privacy is repeated without another draw.
            told = {**told, **found} if "eligible" in told else found
            draws[found.get("attempt", 1)] = told, before | set(found.get("chosen", found.get("joined", ())))
    for entry in history.of("draw"):
        draws = chosen[entry["training_id"], entry["round"]]
        found, members = draws.get(entry["attempt"], ({}, set()))
        wrong = found.get("eligible") != entry["num_eligible"]
        if "chosen" in found:
            wrong |= (found["seed"], found["needed"]) != (entry["seed"], entry["num_needed"])
            wrong |= len(members) != entry["num_chosen"] or not set(entry["members"]) <= members
        if wrong:
            yield entry["training_id"], f"was told {entry.facts}, and the ledger has {found}"


def only_members_are_told(facts: Facts, history: History) -> Findings:
    """In a training with a cohort, a participant gets the events of the rounds that asked it, and of no others."""
    members = facts.by("cohort", "training_id", "number", "user_id")
    log = {(row["training_id"], row["sequence"]): row for row in facts["event"]}
    for entry in history.of("event"):
        training = facts.trainings[entry["training_id"]]
        if entry["event"] not in OF_A_ROUND or entry["user_id"] == training["actor_id"]:
            continue
        # What is not in the log is found by events_stand.
        row = log.get((entry["training_id"], entry["sequence"]))
        key = (entry["training_id"], row["payload"]["round"] if row else None, entry["user_id"])
        if row is not None and training["spec"]["cohort"] is not None and key not in members:
            yield entry["training_id"], f"{entry['user_id']} was not asked, and was told {row['payload']}"


def rounds_take_what_they_need(facts: Facts, history: History) -> Findings:
    """A round counts no more than it needs, and whose work was then under way were told that it is not needed."""
    submitted = facts.by("round_update", "training_id", "number", "user_id")
    for row in facts["round"]:
        told = events_of(facts, row["training_id"], "WorkNotNeeded", row["number"])
        for event in told:
            payload = event["payload"]
            if row["chosen"] is None or not 0 < payload["num_updates"] < payload["num_participants"]:
                yield row["training_id"], f"round {row['number']} was closed, and told {payload}"
        if row["needed"] is not None and row["arrived"] > row["needed"]:
            yield row["training_id"], f"round {row['number']} counts {row['arrived']}, and needs {row['needed']}"
        late = row["chosen"] is not None and row["members"] > row["arrived"] + row["failed"]
        last = told[-1]["payload"]["num_updates"] if told else None
        if row["state"] == "DONE" and late and last != row["arrived"]:
            yield row["training_id"], f"round {row['number']} counts {row['arrived']}, and told {last}"
    released = {
        (row["training_id"], row["sequence"]): row["payload"]["round"]
        for row in facts["event"]
        if row["kind"] == "WorkNotNeeded"
    }
    for entry in history.of("event"):
        number = released.get((entry["training_id"], entry["sequence"]))
        key = entry["training_id"], number, entry["user_id"]
        if number is not None and key in submitted and not _is_reopened(facts, entry["training_id"], number):
            yield entry["training_id"], f"{entry['user_id']} submitted in round {number}, and was told that it need not"


def _is_reopened(facts: Facts, training_id: str, number: int) -> bool:
    """Returns whether a round lost an update: then it asks again whom it had released."""
    return bool(events_of(facts, training_id, "UpdateLost", number))


@dataclass
class _Replay:
    """The ledger up to some entry: who takes part, who has the labels, and who was asked."""

    facts: Facts
    registered: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    num_labels: dict[str, int] = field(default_factory=dict)
    members: dict[tuple[str, int], set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rounds = {(row["training_id"], row["number"]): row for row in self.facts["round"]}

    def read(self, entry: Row, facts: dict[str, Any]) -> Findings:
        action, training_id = entry["action"], entry["training_id"]
        if action == "clients_registered":
            self.registered[training_id] |= set(facts["user_ids"])
        elif action == "client_removed":
            self.registered[training_id].discard(entry["subject"])
        elif action in ("user_created", "user_updated"):
            self.num_labels[entry["subject"]] = facts["labels"]
        elif action == "round_opened":
            number = int(entry["subject"])
            if (training_id, number) in self.members:
                yield training_id, f"round {number} was opened twice"
            self.members[training_id, number] = set()
            yield from self._draw(training_id, number, 1, facts, facts["members"])
        elif action == "round_extended":
            yield from self._draw(training_id, int(entry["subject"]), facts["attempt"], facts, len(facts["joined"]))

    def _draw(self, training_id: str, number: int, attempt: int, facts: dict[str, Any], count: int) -> Findings:
        """Repeats a draw, and compares how many it made members, and whom."""
        members, row = self.members[training_id, number], self.rounds.get((training_id, number))
        if row is None:
            yield training_id, f"round {number} was opened, and is not there"
            return
        spec = self.facts.trainings[training_id]["spec"]
        if row["step"]:
            # A chain goes on with those that began it, and no participant joins.
            assigned = {one["user_id"] for one in self.facts["assignment"] if self._is_of(one, row)}
            drawn = (assigned & self.registered[training_id]) - members
        else:
            drawn, problem = self._repeat(row, attempt, facts, _cohort(spec, row))
            if problem:
                yield training_id, f"round {number}, attempt {attempt}: {problem}; the ledger has {facts}"
        members |= drawn
        if len(drawn) != count:
            yield training_id, f"round {number}, attempt {attempt}, asks {count}, and by the rule {sorted(drawn)}"

    @staticmethod
    def _is_of(assignment: Row, row: Row) -> bool:
        return (assignment["training_id"], assignment["number"]) == (row["training_id"], row["number"])

    def _repeat(self, row: Row, attempt: int, facts: dict[str, Any], cohort: dict[str, Any]) -> tuple[set[str], str]:
        """Returns who is drawn by the rule, and what the ledger has that is not by the rule."""
        registered = self.registered[row["training_id"]]
        # Users with one label have the one that cohorts ask for.
        able = {one for one in registered if not cohort["labels"] or self.num_labels[one] == 1}
        others = able - self.members[row["training_id"], row["number"]]
        privacy = _privacy(self.facts, row) if row["kind"] == "TRAIN" else None
        if privacy is not None and attempt > 1:
            # Nobody joins.
            return set(), "there is no draw" if "eligible" in facts else ""
        available = facts.get("eligible", len(others))
        if available > len(others) or (available < len(others) and not cohort["available_only"]):
            return set(), f"{available} could be asked of {sorted(others)}"
        if privacy is not None and cohort["fraction"] is not None and not privacy["tree"]:
            return self._repeat_independently(row, facts, cohort, others)
        needed = _needed(cohort, len(able)) if attempt == 1 else row["needed"]
        if needed is None:
            known = others if available == len(others) else self._stored(row, attempt, facts)
            return known, "" if known <= others else f"{sorted(known - others)} could not be asked"
        if (facts["seed"], facts["needed"]) != (str(cohort["seed"]), needed):
            return set(), f"the seed is {cohort['seed']}, and {needed} are needed"
        count = needed if attempt == 1 else max(0, needed - self._arrived(row, attempt))
        count = min(available, math.ceil(Decimal(repr(float(cohort["over_selection"]))) * count))
        chosen = set(facts["chosen"])
        if len(chosen) != count or not chosen <= others:
            return chosen, f"{count} are to be drawn of {sorted(others)}"
        if available == len(others) and chosen != set(_drawn(cohort["seed"], row, attempt, others)[:count]):
            return chosen, f"another {count} of {sorted(others)} are drawn"
        return chosen, ""

    @staticmethod
    def _repeat_independently(
        row: Row, facts: dict[str, Any], cohort: dict[str, Any], others: set[str]
    ) -> tuple[set[str], str]:
        """As `_repeat`, where each participant is drawn by its own number."""
        chosen, prefix = set(facts["chosen"]), f"{cohort['seed']} {row['training_id']} {row['number']} 1 "
        numbers = {one: int(hashlib.sha256((prefix + one).encode()).hexdigest(), 16) for one in others}
        drawn = {one for one, number in numbers.items() if number / 2**256 < cohort["fraction"]}
        if (facts["seed"], facts["needed"]) != (str(cohort["seed"]), len(chosen)):
            return chosen, f"the seed is {cohort['seed']}, and {len(chosen)} are needed"
        wrong = chosen != drawn if facts["eligible"] == len(others) else not chosen <= drawn
        return chosen, f"{sorted(drawn)} are drawn of {sorted(others)}" if wrong else ""

    def _stored(self, row: Row, attempt: int, facts: dict[str, Any]) -> set[str]:
        """Returns who was asked of those that were connected, which the ledger does not have without a draw."""
        if attempt > 1:
            return set(facts["joined"])
        joined = {
            one
            for entry in self.facts["audit"]
            if entry["action"] == "round_extended" and entry["training_id"] == row["training_id"]
            if int(entry["subject"]) == row["number"]
            for one in json.loads(entry["facts"])["joined"]
        }
        return {one["user_id"] for one in self.facts["cohort"] if self._is_of(one, row)} - joined

    def _arrived(self, row: Row, attempt: int) -> int:
        """Returns how many updates a round had when an attempt began."""
        told = events_of(self.facts, row["training_id"], "RoundExtended", row["number"])
        [arrived] = [one["payload"]["updates_arrived"] for one in told if one["payload"]["attempt"] == attempt]
        return int(arrived)


NO_COHORT = {
    "fraction": None,
    "size": None,
    "over_selection": 1.0,
    "labels": {},
    "available_only": False,
}


def _cohort(spec: dict[str, Any], row: Row) -> dict[str, Any]:
    """Returns the cohort of a round: of one that a selection depends on, everybody by default."""
    cohort: dict[str, Any] = spec["cohort"] or NO_COHORT
    if row["kind"] == "EVALUATE" and spec["selection"] is not None and spec["evaluation_policy"] is None:
        return {**cohort, "fraction": None, "size": None, "over_selection": 1.0}
    return cohort


def _privacy(facts: Facts, row: Row) -> dict[str, Any] | None:
    """Returns the options of a training's privacy; None if it has none."""
    found = facts.trainings[row["training_id"]]["spec"]["aggregation"].get("differential_privacy")
    return None if found is None else found["options"]


def _needed(cohort: dict[str, Any], registered: int) -> int | None:
    """Returns how many a round needs of those with the labels; None for all members."""
    if cohort["size"] is not None:
        return int(cohort["size"])
    if cohort["fraction"] is None:
        return None
    return math.ceil(Decimal(repr(float(cohort["fraction"]))) * registered)


def _drawn(seed: int, row: Row, attempt: int, user_ids: Iterable[str]) -> list[str]:
    """Returns users in the order in which they are chosen."""
    prefix = f"{seed} {row['training_id']} {row['number']} {attempt} "
    return sorted(user_ids, key=lambda one: hashlib.sha256((prefix + one).encode()).digest())
