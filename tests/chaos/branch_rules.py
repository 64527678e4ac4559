"""Invariants of side branches, and of the updates that trainings keep."""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator

from chaos.facts import Facts, Row
from chaos.history import History
from chaos.lookups import makes_version
from chaos.model_rules import wrong_version

Findings = Iterator[tuple[str, str]]
MADE = ("shadow_version_made", "counterfactual_version_made")


def branches_are_whole(facts: Facts, history: History) -> Findings:
    """A side branch has all its versions, as the ledger has them; that of a shadow as many as its training."""
    versions = facts.by("model_version", "model_id")
    models = {row["model_id"]: row for row in facts["model"]}
    ledger: dict[str, dict[int, str]] = defaultdict(dict)
    for row in facts["audit"]:
        if row["action"] in MADE:
            ledger[row["model_id"]][int(row["subject"])] = json.loads(row["facts"])["sha256"]
    for row in facts["audit"]:
        if row["action"] not in ("shadow_created", "counterfactual_created"):
            continue
        training, model_id = facts.trainings[row["training_id"]], row["model_id"]
        found = {one["version"]: one["sha256"] for one in versions.get(model_id, []) if one["version"]}
        latest = models[model_id]["version"] if model_id in models else None
        if found != ledger[model_id] or latest != len(found) or set(found) != set(range(1, len(found) + 1)):
            yield row["training_id"], f"the branch {model_id} has {found} up to {latest}, of {ledger[model_id]}"
        elif row["action"] == "shadow_created" and latest != training["model_version"]:
            yield row["training_id"], f"the branch {model_id} has {latest} of {training['model_version']} versions"
    for entry in history.of("branched"):
        if len(ledger[entry["model_id"]]) != entry["versions"] or entry["model_id"] not in models:
            yield entry["training_id"], f"the branch {entry['model_id']} was acknowledged, and is not there as a whole"


def shadows_are_right(facts: Facts, history: History) -> Findings:
    """Each version of a shadow is what its aggregation makes of the updates of the round; without one, a copy."""
    versions = {(row["model_id"], row["version"]): row for row in facts["model_version"]}
    problems = {
        (row["model_id"], int(row["subject"])): json.loads(row["facts"]).get("problem", "")
        for row in facts["audit"]
        if row["action"] == "shadow_version_made"
    }
    shadows = facts.by("shadow", "training_id")
    for row in facts["round"]:
        training = facts.trainings[row["training_id"]]
        if not makes_version(training, row):
            continue
        used = facts.counted.get((row["training_id"], row["number"]), [])
        before = versions.get((training["model_id"], row["model_version"]))
        if not used or before is None:
            # Another rule finds that.
            continue
        for shadow in shadows.get(row["training_id"], []):
            key = shadow["model_id"], row["model_version"] + 1
            version, left = versions.get(key), versions.get((key[0], row["model_version"]))
            if version is None or left is None or not version["stored"] or not left["stored"]:
                continue
            try:
                wrong = _wrong(facts, shadow, row, before, version, left, used, problems.get(key, "is not recorded"))
            except FileNotFoundError:
                # `references_lead_somewhere` finds those that are needed; a loss of power may take the others.
                continue
            except (OSError, ValueError, KeyError, struct.error) as error:
                wrong = repr(error)
            if wrong:
                yield row["training_id"], f"shadow {shadow['position']} has made of round {row['number']}: {wrong}"


def _wrong(
    facts: Facts, shadow: Row, row: Row, before: Row, version: Row, left: Row, used: list[Row], problem: str
) -> str | None:
    if not problem:
        stages = facts.trainings[row["training_id"]]["spec"]["aggregation"]["shadow"][shadow["position"]]
        return wrong_version(facts, stages, row, before, version, used, left)
    if "needs" not in problem:
        return f"nothing, although there is an aggregate: {problem}"
    states = [facts.states.get((one["model_id"], one["version"]), {}) for one in (left, version)]
    slots = [{slot: (one["sha256"], one["details"]) for slot, one in state.items()} for state in states]
    same = version["sha256"] == before["sha256"] and slots[0] == slots[1]
    return None if same else f"no copy, although there is no aggregate: {problem}"


def updates_are_kept_by_the_rule(facts: Facts, history: History) -> Findings:
    """The files of updates are kept of as many rounds as a training says, and of those that are not over."""
    rounds = facts.by("round", "training_id")
    updates = facts.by("round_update", "training_id")
    for training_id, training in facts.trainings.items():
        keep = training["spec"].get("keep_update_rounds")
        mine = sorted(rounds.get(training_id, []), key=lambda row: row["number"])
        done = [row for row in mine if row["state"] == "DONE" and row["kind"] != "EVALUATE"]
        counted = {id_ for row in mine for id_ in _counted(facts, training_id, row["number"])}
        if keep is not None:
            # Models that were assigned are needed until the next round is done.
            assigned = bool(done) and done[-1]["kind"] == "CHAINED" and not makes_version(training, done[-1])
            last = max(keep, 1) if assigned else keep
            kept = (
                {row["number"] for row in done[len(done) - last :]}
                if last < len(done)
                else {row["number"] for row in done}
            )
        rows = [row for row in updates.get(training_id, []) if row["sha256"]]
        for row in rows:
            state = next((one["state"] for one in mine if one["number"] == row["number"]), "")
            stays = keep is None or state in ("OPEN", "AGGREGATING")
            stays = stays or (state == "DONE" and row["number"] in kept and row["update_id"] in counted)
            if bool(row["stored"]) != stays:
                yield training_id, f"the file of the update {row['update_id']} is {'not ' if stays else ''}kept"
        size = sum(row["size_bytes"] for row in rows if row["stored"])
        if size != training["stored_bytes"]:
            yield training_id, f"its updates have {size} bytes, and count as {training['stored_bytes']}"


def models_count_their_bytes(facts: Facts, history: History) -> Findings:
    """What a model counts in the quota of its owner is the size of its base, its versions and their artifacts."""
    bases = {row["model_id"]: row for row in facts["model_base"]}
    versions, artifacts = facts.by("model_version", "model_id"), facts.by("artifact", "model_id")
    for model in facts["model"]:
        base = bases.get(model["model_id"])
        sizes = [] if base is None else [base["size_bytes"]]
        stored = {row["version"]: row for row in versions.get(model["model_id"], []) if row["stored"]}
        for row in stored.values():
            if row["delta_sha256"] is not None:
                sizes.append(row["delta_size_bytes"])
            elif base is None or base["sha256"] != row["sha256"]:
                sizes.append(row["size_bytes"])
        sizes += [row["size_bytes"] for row in artifacts.get(model["model_id"], []) if row["version"] in stored]
        if sum(sizes) != model["stored_bytes"]:
            yield "", f"the model {model['model_id']} has {sum(sizes)} bytes, and counts as {model['stored_bytes']}"


def _counted(facts: Facts, training_id: str, number: int) -> list[str]:
    return [row["update_id"] for row in facts.counted.get((training_id, number), [])]
