"""Invariants of the audit log, and of what it says became of each update."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from chaos.facts import Facts, Row
from chaos.history import History
from chaos.lookups import needs

Findings = Iterator[tuple[str, str]]
AUDITED = ("time", "user_id", "action", "training_id", "model_id", "subject", "facts")


def the_audit_log_is_chained(facts: Facts, history: History) -> Findings:
    """Each entry's hash is that of its fields and of the entry before it in its chain, up to the chain's head.

    The server's chain has where each other one begins, and heads that lie on them.
    """
    chains = facts.by("audit", "chain")
    said = {row["training_id"]: row["hash"] for row in chains[""] if row["action"] == "chain_begun"}
    heads = {row["chain"]: (row["sequence"], row["hash"]) for row in facts["audit_head"]}
    if not chains.keys() == heads.keys() == {"", *said}:
        yield "", f"there are the chains {set(chains)} with the heads {heads}, and {said} have begun"
        return
    for chain, rows in chains.items():
        yield from _check_chain(str(chain), rows, said.get(str(chain), "0" * 64), heads[chain])
    hashes = {(row["chain"], f"{row['sequence']}:{row['hash']}") for row in facts["audit"]}
    for row in chains[""]:
        recorded = json.loads(row["facts"])["heads"] if row["action"] == "heads_recorded" else {}
        for one in recorded.items() - hashes:
            yield one[0], f"the head {one} is not on its chain"


def _check_chain(chain: str, rows: list[Row], previous: str, head: tuple[int, str]) -> Findings:
    for sequence, row in enumerate(sorted(rows, key=lambda row: row["sequence"]), 1):
        fields = ("fedround.audit.v1", sequence, *(row[name] for name in AUDITED), previous)
        texts = [str(value).encode() for value in fields]
        digest = hashlib.sha256(b"".join(b"%d:%s," % (len(text), text) for text in texts)).hexdigest()
        if (row["sequence"], row["previous_hash"], row["hash"]) != (sequence, previous, digest):
            yield chain, f"entry {row['sequence']} does not follow entry {sequence - 1}: {row}"
            return
        previous = digest
    if head != (len(rows), previous):
        yield chain, f"the head is {head} behind entry {len(rows)}"


def the_ledger_knows_what_counts(facts: Facts, history: History) -> Findings:
    """What a round counted is in the audit log once, as it was accepted, and nothing else is."""
    reported: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for row in facts["audit"]:
        if row["action"] == "updates_counted":
            counted = json.loads(row["facts"])["updates"]
            reported[row["training_id"], int(row["subject"])] += [
                (one["update_id"], one["num_examples"]) for one in counted
            ]
    for row in facts["round"]:
        key = row["training_id"], row["number"]
        used = [(one["update_id"], one["num_examples"]) for one in facts.counted.get(key, ())]
        if row["kind"] != "EVALUATE" and sorted(reported[key]) != sorted(used if row["state"] == "DONE" else ()):
            yield row["training_id"], f"the ledger of round {row['number']} has {reported[key]}, {used} count"


def aggregations_do_not_fail(facts: Facts, history: History) -> Findings:
    """No training ends because its updates, which are all valid, could not be aggregated, unless they are too few.

    These are the updates with examples of the round that was abandoned, as the ledger has them.
    """
    examples: dict[str, int] = {}
    left: dict[str, list[int]] = {}
    for row in facts.entries:
        said = json.loads(row["facts"])
        if row["action"] == "update_accepted":
            examples[row["subject"]] = said["num_examples"]
        elif row["action"] == "updates_superseded" and said["reason"] == "round_abandoned":
            left[row["training_id"]] = [examples.get(update_id, 0) for update_id in said["update_ids"]]
    for training in facts["training"]:
        if training["failure_reason"] == "AGGREGATION_FAILED":
            number, needed = sum(map(bool, left.get(training["training_id"], []))), needs(training)
            if not 0 < number < needed:
                message = training["failure_message"]
                yield training["training_id"], f"it failed with {number} updates, and needs {needed}: {message}"


def each_submission_has_one_outcome(facts: Facts, history: History) -> Findings:
    """In the ledger, each accepted update or report is counted in one round, or superseded, once."""
    outcomes: Counter[str] = Counter()
    accepted: dict[str, str] = {}
    for row in facts["audit"]:
        if row["action"] in ("update_accepted", "report_accepted"):
            accepted[row["subject"]] = row["training_id"]
        elif row["action"] == "updates_counted":
            outcomes.update(one["update_id"] for one in json.loads(row["facts"])["updates"])
        elif row["action"] == "updates_superseded":
            outcomes.update(json.loads(row["facts"])["update_ids"])
    for update_id in accepted.keys() | outcomes.keys():
        if update_id not in accepted or outcomes[update_id] != 1:
            yield accepted.get(update_id, ""), f"the submission {update_id} has {outcomes[update_id]} outcomes"
    for row in facts["round_update"]:
        if row["update_id"] not in accepted:
            yield row["training_id"], f"the ledger does not have the submission {row['update_id']}"
