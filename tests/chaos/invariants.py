"""What must hold of a server's database and files, and of what its clients received, whatever happened in between.

Each rule is a generator of violations over `Facts` and a `History`. To add one, write it and name it in RULES.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.branch_rules import (
    branches_are_whole,
    models_count_their_bytes,
    shadows_are_right,
    updates_are_kept_by_the_rule,
)
from chaos.buffering_rules import buffered_updates_count_once_in_time
from chaos.cohort_rules import (
    cohorts_are_drawn_by_the_rule,
    draws_are_as_told,
    only_members_are_told,
    rounds_take_what_they_need,
)
from chaos.control_rules import (
    changes_are_made_once,
    configurations_are_as_recorded,
    no_round_opens_when_it_may_not,
)
from chaos.facts import Facts
from chaos.history import History
from chaos.ledger_rules import (
    aggregations_do_not_fail,
    each_submission_has_one_outcome,
    the_audit_log_is_chained,
    the_ledger_knows_what_counts,
)
from chaos.lookups import enough_updates, events_of, has_left, is_needed, is_present, makes_version, ordered
from chaos.model_rules import copies_keep_their_states, models_are_right
from chaos.privacy_rules import budgets_are_never_overspent, secrets_are_gone

OVER = ("DONE", "ABANDONED")
JOURNALED = 1 << 20
"""Size of the files that the journal has, in bytes, at most."""
LAST = {"COMPLETED": "TrainingFinished", "ERROR": "TrainingFailed"}


@dataclass(frozen=True)
class Violation:
    """A promise that was broken."""

    rule: str
    training_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text} (training {self.training_id})"


Findings = Iterator[tuple[str, str]]
Rule = Callable[[Facts, History], Findings]


def receipts_stand(facts: Facts, history: History) -> Findings:
    """Every acknowledged update is there, as it was sent, under the receipt's id, once; or it was lost to damage."""
    rows = facts.by("round_update", "training_id", "number", "user_id")
    for kind in ("receipt", "report"):
        for entry in history.of(kind):
            if entry.facts.get("update_id") in facts.lost:
                continue
            found = rows.get((entry["training_id"], entry["round"], entry["user_id"]), [])
            sent = {
                name: value for name, value in entry.facts.items() if name not in ("training_id", "round", "user_id")
            }
            if len(found) != 1 or any(found[0][name] != value for name, value in sent.items()):
                yield entry["training_id"], f"the {kind} {entry.facts} has {found or 'no row'}"


def updates_count_once(facts: Facts, history: History) -> Findings:
    """An accepted update is in its round's aggregation, or superseded: its sender was removed, its round abandoned."""
    rounds = facts.by("round", "training_id", "number")
    cohort = facts.by("cohort", "training_id", "number", "user_id")
    for key, rows in facts.by("round_update", "training_id", "number", "user_id").items():
        training_id, number, user_id = key  # type: ignore[misc]
        if len(rows) > 1:
            yield training_id, f"{user_id} has {len(rows)} updates in round {number}"
        if (training_id, number) not in rounds or key not in cohort:
            yield training_id, f"the update {rows[0]['update_id']} belongs to no round, or to no member of its cohort"
        elif cohort[key][0]["removed"] and not has_left(facts, training_id, user_id):
            yield training_id, f"the update {rows[0]['update_id']} is left out, and {user_id} was not removed"
    for row in facts["round"]:
        closed = events_of(facts, row["training_id"], "RoundClosed", row["number"])
        used = facts.counted.get((row["training_id"], row["number"]), [])
        if row["state"] == "DONE" and any(event["payload"]["num_updates"] != len(used) for event in closed):
            yield row["training_id"], f"round {row['number']} says {closed[0]['payload']}, {len(used)} updates count"
        if row["arrived"] != len(used):
            yield row["training_id"], f"round {row['number']} has {row['arrived']} updates, {len(used)} count"


def damaged_updates_never_count(facts: Facts, history: History) -> Findings:
    """No update counts whose file is damaged; each that was lost is superseded, reported once, and gone."""
    rows = {row["update_id"] for row in facts["round_update"]}
    ledger = {
        update["update_id"]
        for row in facts["audit"]
        if row["action"] == "updates_counted"
        for update in json.loads(row["facts"])["updates"]
    }
    kept = {row["update_id"] for row in facts["round_update"] if row["stored"]}
    for entry in history.of("damaged"):
        is_kept = entry["update_id"] in kept and not facts.trainings[entry["training_id"]]["remove_time"]
        # A start makes a small file anew from the journal; then it is whole for as long as it is kept.
        is_made_anew = entry["size_bytes"] <= JOURNALED and (not is_kept or _is_whole(facts.path(entry["sha256"])))
        if entry["update_id"] in ledger and not is_made_anew:
            yield entry["training_id"], f"the update {entry['update_id']} was counted, and its file was damaged before"
    reported = Counter(
        (row["training_id"], row["payload"]["update_id"]) for row in facts["event"] if row["kind"] == "UpdateLost"
    )
    if reported != Counter((row["training_id"], update_id) for update_id, row in facts.lost.items()):
        yield "", f"lost are {sorted(facts.lost)}, reported is {reported}"
    for update_id in facts.lost.keys() & (rows | ledger):
        yield facts.lost[update_id]["training_id"], f"the update {update_id} was lost, and is there or counted"


def _is_whole(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def repeated_answers_are_true(facts: Facts, history: History) -> Findings:
    """What was said to be superseded does not count; what its sender got a receipt for, after it had left, does."""
    cohort = facts.by("cohort", "training_id", "number", "user_id")
    rounds = facts.by("round", "training_id", "number")
    for entry in (*history.of("superseded"), *history.of("sent_again")):
        key = entry["training_id"], entry["round"], entry["user_id"]
        removed = any(row["removed"] for row in cohort.get(key, ()))
        abandoned = any(row["state"] == "ABANDONED" for row in rounds.get(key[:2], ()))
        if entry.kind == "superseded" and not (removed or abandoned):
            yield entry["training_id"], f"the submission {key} counts, and its sender was told that it does not"
        # The round may have been abandoned later.
        if entry.kind == "sent_again" and removed:
            yield entry["training_id"], f"the submission {key} does not count, and its sender was told that it does"


def rounds_commit_once(facts: Facts, history: History) -> Findings:
    """A round that is done was committed once, in the log and in the versions of the model; another one never."""
    for row in facts["round"]:
        closed = events_of(facts, row["training_id"], "RoundClosed", row["number"])
        if len(closed) != (row["state"] == "DONE"):
            yield row["training_id"], f"round {row['number']} is {row['state']} and was closed {len(closed)} times"
        started = [event["audience"] for event in events_of(facts, row["training_id"], "RoundStarted", row["number"])]
        # When it is repeated, those who join are notified, each once; so are those whose updates were lost, each time.
        # If others were released, all whose updates are missing are notified together.
        lost = [event["audience"] for event in events_of(facts, row["training_id"], "UpdateLost", row["number"])]
        joined = list((Counter(one for one in started if one not in ("cohort", "missing")) - Counter(lost)).elements())
        if started.count("cohort") != 1 or len(joined) != len(set(joined)) or (joined and row["attempt"] == 1):
            yield row["training_id"], f"round {row['number']} was not started once"
        if row["state"] == "DONE" and (row["epoch"] < 1 or row["done_time"] is None):
            yield row["training_id"], f"round {row['number']} is done in epoch {row['epoch']} at {row['done_time']}"
    versions, rounds = facts.by("model_version", "model_id"), facts.by("round", "training_id")
    for training in facts["training"]:
        numbers = sorted(row["version"] for row in versions.get(training["model_id"], []))
        commits = [row for row in rounds.get(training["training_id"], []) if makes_version(training, row)]
        if numbers != list(range(training["model_version"] + 1)) or len(commits) != training["model_version"]:
            yield training["training_id"], f"{len(commits)} commits made the versions {numbers}"
        if [row["number"] for row in ordered(rounds, training)] != list(range(len(ordered(rounds, training)))):
            yield training["training_id"], "the rounds' numbers have gaps"


def failures_stand(facts: Facts, history: History) -> Findings:
    """Each acknowledged failure is there, once and in the log, or its participant has submitted; rounds count them."""
    rows = facts.by("participant_failure", "training_id", "number", "user_id")
    updates = facts.by("round_update", "training_id", "number", "user_id")
    cohort = facts.by("cohort", "training_id", "number", "user_id")
    for entry in history.of("failure"):
        key = entry["training_id"], entry["round"], entry["user_id"]
        if key not in rows and key not in updates:
            yield entry["training_id"], f"the failure {entry.facts} is not there"
        told = events_of(facts, entry["training_id"], "ParticipantFailed", entry["round"])
        reasons = [one["payload"]["reason"] for one in told if one["payload"]["participant_id"] == entry["user_id"]]
        if reasons.count(entry["reason"]) != 1:
            yield entry["training_id"], f"the failure {entry.facts} is in the log as {reasons}"
    for row in facts["participant_failure"]:
        key = row["training_id"], row["number"], row["user_id"]
        if key in updates or key not in cohort:
            yield (
                row["training_id"],
                f"{row['user_id']} failed in round {row['number']}, and submitted or was not asked",
            )
    for row in facts["round"]:
        members = [one for one in facts["cohort"] if is_present(one, row)]
        failed = sum((one["training_id"], one["number"], one["user_id"]) in rows for one in members)
        if row["failed"] != failed:
            yield row["training_id"], f"round {row['number']} has {row['failed']} failures, {failed} are there"
        enough = enough_updates(facts.trainings[row["training_id"]], row, len(members), failed)
        # With privacy, nobody may have been drawn.
        if row["state"] == "DONE" and row["arrived"] < max(row["chosen"] != 0, enough):
            yield row["training_id"], f"round {row['number']} is done with {row['arrived']} updates"


def logs_have_no_gaps(facts: Facts, history: History) -> Findings:
    """Sequences go from 1 to the training's last; each change is reported once; the last event says how it ended."""
    updates = facts.by("round_update", "training_id")
    for training_id, training in facts.trainings.items():
        log = facts.events.get(training_id, [])
        if [event["sequence"] for event in log] != list(range(1, training["last_sequence"] + 1)):
            yield training_id, f"the log has {[event['sequence'] for event in log]} of {training['last_sequence']}"
        reported = Counter(e["payload"]["update_id"] for e in log if e["kind"] == "UpdateAccepted")
        accepted = [row["update_id"] for row in updates.get(training_id, [])]
        accepted += [id_ for id_, row in facts.lost.items() if row["training_id"] == training_id]
        if reported != Counter(accepted):
            yield training_id, "the accepted updates and those in the log differ"
        kinds = [event["kind"] for event in log]
        wanted = "TrainingRemoved" if training["remove_time"] else LAST.get(training["state"])
        if wanted is not None and (not kinds or kinds[-1] != wanted):
            yield training_id, f"it is {training['state']}, and its log ends with {kinds[-1:]}"


def events_stand(facts: Facts, history: History) -> Findings:
    """Each event that a subscriber received is in the log, at that place."""
    kinds = {(row["training_id"], row["sequence"]): row["kind"] for row in facts["event"]}
    for entry in history.of("event"):
        if kinds.get((entry["training_id"], entry["sequence"])) != entry["event"]:
            yield entry["training_id"], f"a subscriber received {entry.facts}"


def closed_rounds_stay_closed(facts: Facts, history: History) -> Findings:
    """No update is accepted before its round is open, after it is over, or beyond what closes it."""
    for training_id, log in facts.events.items():
        current: int | None = None
        for event in log:
            payload = event["payload"]
            if event["kind"] == "RoundStarted":
                current = payload["round"]
            elif event["kind"] in ("RoundClosed", "TrainingFinished", "TrainingFailed", "TrainingRemoved"):
                current = None
            elif event["kind"] == "UpdateAccepted" and (
                payload["round"] != current or payload["updates_arrived"] > payload["updates_expected"]
            ):
                yield str(training_id), f"accepted while round {current} was open: {payload}"


def blobs_are_themselves(facts: Facts, history: History) -> Findings:
    """Each file's name is the hash of its bytes, unless it was damaged; tmp is empty after a start."""
    damaged = {entry["sha256"] for entry in history.of("damaged")}
    for path in (facts.data_dir / "objects").glob("*/*"):
        if path.name in damaged:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name != digest or path.parent.name != digest[:2]:
            yield "", f"the blob {path.name} contains {digest}"
    if left := list((facts.data_dir / "tmp").iterdir()):
        yield "", f"tmp contains {left}"


def references_lead_somewhere(facts: Facts, history: History) -> Findings:
    """What a row refers to is there, with the size that the row gives, unless it was damaged."""
    damaged = {entry["sha256"] for entry in history.of("damaged")}
    removed = {row["model_id"] for row in facts["model"] if row["remove_time"]}
    needed = [
        (row["delta_sha256"] or row["sha256"], row["delta_size_bytes"] or row["size_bytes"], "")
        for row in facts["model_version"]
        if is_needed(row, removed)
    ]
    bases = (row for row in facts["model_base"] if row["model_id"] not in removed)
    needed += [(row["sha256"], row["size_bytes"], "") for row in bases]
    stored = {(row["model_id"], row["version"]) for row in facts["model_version"] if is_needed(row, removed)}
    for row in facts["artifact"]:
        if (row["model_id"], row["version"]) in stored:
            needed.append((row["sha256"], row["size_bytes"], ""))
    # When a training has ended, no participant needs its assigned models.
    for row in facts["round_update"]:
        if row["stored"] and not facts.trainings[row["training_id"]]["remove_time"]:
            needed.append((row["sha256"], row["size_bytes"], row["training_id"]))
    for digest, size, training_id in needed:
        path = facts.path(digest)
        if digest not in damaged and (not path.is_file() or path.stat().st_size != size):
            yield training_id, f"the blob {digest} of {size} bytes is referred to, and is not there"


def chains_assign_each_model_once(facts: Facts, history: History) -> Findings:
    """In daisy chaining, the members of a round are assigned each other's last updates, each one once, none its own."""
    for key, rows in facts.by("assignment", "training_id", "number").items():
        training_id, number = key  # type: ignore[misc]
        before = {row["user_id"]: row["sha256"] for row in facts.counted.get((training_id, number - 1), [])}
        assigned = {row["user_id"]: row["sha256"] for row in rows}
        own = [user for user, digest in assigned.items() if len(assigned) > 1 and before.get(user) == digest]
        sources = Counter(digest for user, digest in before.items() if user in assigned)
        if own or Counter(assigned.values()) != sources:
            yield training_id, f"round {number} assigned {assigned} of {before}"


def acknowledged_changes_stand(facts: Facts, history: History) -> Findings:
    """Each change that was acknowledged to an actor or an admin is stored."""
    users = {row["user_id"]: row for row in facts["users"]}
    labels = {entry["user_id"]: entry["labels"] for entry in history.of("labelled")}
    parts = facts.by("participant", "training_id", "user_id")
    for entry in history.entries:
        training_id = entry.facts.get("training_id", "")
        training = facts.trainings.get(training_id)
        if entry.kind == "created":
            twins = [row for row in facts["training"] if row["request_id"] == entry["request_id"]]
            holds = training is not None and len(twins) == 1 and training["model_id"] == entry["model_id"]
        elif entry.kind == "started":
            holds = training is not None and training["start_time"] is not None
        elif entry.kind == "removed":
            holds = training is not None and training["remove_time"] is not None
        elif entry.kind == "registered":
            holds = (training_id, entry["user_id"]) in parts
        elif entry.kind == "client_removed":
            holds = has_left(facts, training_id, entry["user_id"])
        elif entry.kind == "labelled":
            # Only the last change can be seen.
            holds = users[entry["user_id"]]["labels"] == labels[entry["user_id"]]
        elif entry.kind == "user":
            holds = entry["user_id"] in users
        elif entry.kind == "user_removed":
            tokens = [row for row in facts["token"] if row["user_id"] == entry["user_id"]]
            holds = users[entry["user_id"]]["remove_time"] is not None and not tokens
        else:
            continue
        if not holds:
            yield training_id, f"was acknowledged {entry.kind} {entry.facts}"


def trainings_end(facts: Facts, history: History) -> Findings:
    """When all is over, no training runs, and no round of a training that has ended waits."""
    for row in facts["round"]:
        if row["state"] not in OVER:
            yield row["training_id"], f"round {row['number']} is {row['state']}"
    for training in facts["training"]:
        if training["state"] in ("ONGOING", "SWAG_ROUND") and training["remove_time"] is None:
            yield training["training_id"], f"it is {training['state']}"


def no_unexpected_answers(facts: Facts, history: History) -> Findings:
    """No call was answered with something that its caller could not expect."""
    for entry in history.of("unexpected"):
        yield entry.facts.get("training_id", ""), f"{entry.facts}"


RULES: tuple[Rule, ...] = (
    receipts_stand,
    updates_count_once,
    damaged_updates_never_count,
    repeated_answers_are_true,
    rounds_commit_once,
    models_are_right,
    copies_keep_their_states,
    branches_are_whole,
    shadows_are_right,
    updates_are_kept_by_the_rule,
    models_count_their_bytes,
    failures_stand,
    logs_have_no_gaps,
    events_stand,
    closed_rounds_stay_closed,
    blobs_are_themselves,
    references_lead_somewhere,
    chains_assign_each_model_once,
    acknowledged_changes_stand,
    the_audit_log_is_chained,
    the_ledger_knows_what_counts,
    each_submission_has_one_outcome,
    cohorts_are_drawn_by_the_rule,
    draws_are_as_told,
    only_members_are_told,
    rounds_take_what_they_need,
    buffered_updates_count_once_in_time,
    trainings_end,
    aggregations_do_not_fail,
    changes_are_made_once,
    no_round_opens_when_it_may_not,
    configurations_are_as_recorded,
    budgets_are_never_overspent,
    secrets_are_gone,
    no_unexpected_answers,
)


def check(facts: Facts, history: History) -> list[Violation]:
    """Applies all rules."""
    return [Violation(rule.__name__, *finding) for rule in RULES for finding in rule(facts, history)]
