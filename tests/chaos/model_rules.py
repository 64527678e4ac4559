"""Invariants of what rounds make: versions, the states of their aggregations, and posteriors."""

import struct
from collections.abc import Iterator

from chaos import aggregation, tensors
from chaos.facts import Facts, Row
from chaos.history import History
from chaos.lookups import makes_version

Findings = Iterator[tuple[str, str]]


def models_are_right(facts: Facts, history: History) -> Findings:
    """Each version and its state are what the updates of its round make, each posterior what its moments make."""
    versions = {(row["model_id"], row["version"]): row for row in facts["model_version"]}
    for row in facts["round"]:
        training = facts.trainings[row["training_id"]]
        used = facts.counted.get((row["training_id"], row["number"]), [])
        makes = makes_version(training, row)
        if not makes and (row["state"], row["kind"]) != ("DONE", "SWAG"):
            continue
        version = versions.get((training["model_id"], row["model_version"] + makes))
        if version is None or not version["stored"] or not used:
            yield from [] if used and version else [(row["training_id"], f"round {row['number']} has made nothing")]
            continue
        before = versions[training["model_id"], row["model_version"]]
        try:
            wrong = _wrong_version(facts, before, version, used) if makes else _wrong_posterior(facts, before, used)
        except (OSError, ValueError, KeyError, struct.error) as error:
            wrong = repr(error)
        if wrong is not None:
            yield row["training_id"], f"what round {row['number']} has made is wrong: {wrong}"


def _wrong_version(facts: Facts, before: Row, version: Row, used: list[Row]) -> str | None:
    """Makes a version and its state again, of the model and the state that its round started from."""
    stages = facts.trainings[used[0]["training_id"]]["spec"]["aggregation"]
    inputs, found = [facts.tensors(update["sha256"]) for update in used], facts.version(version)
    weights = [update["num_examples"] for update in used]
    differs = any(tensors.has_differences(update, found) for update in inputs)
    if not before["stored"] and (differs or not any(weights) or not aggregation.is_mean(stages)):
        return None
    model = facts.version(before) if before["stored"] else {}
    if differs:
        inputs = [tensors.whole(update, model) for update in inputs]
    old, new = (facts.states.get((row["model_id"], row["version"]), {}) for row in (before, version))
    state = {slot: facts.tensors(row["sha256"]) for slot, row in old.items()}
    steps, made_steps = ({slot: row["details"]["steps"] for slot, row in rows.items()} for rows in (old, new))
    exact = aggregation.is_exact(stages) or not any(weights)
    if any(weights):
        updates = zip((update["sha256"] for update in used), inputs, weights, strict=True)
        made, state = aggregation.expected(stages, list(updates), model, state, steps)
        made = {**facts.inherited(version), **made}
        steps = {slot: steps.get(slot, 0) + 1 for slot in state}
    else:
        made = model
        # The first state is there, but nothing has made it.
        state, steps = (state, steps) if old else ({}, dict.fromkeys(new, 0))
    if made_steps != steps:
        return f"the steps of the state are {made_steps} instead of {steps}"
    wrong = [tensors.same(facts.tensors(new[slot]["sha256"]), one, exact=exact) for slot, one in state.items()]
    return tensors.same(found, made, exact=exact) or next(filter(None, wrong), None)


def _wrong_posterior(facts: Facts, before: Row, used: list[Row]) -> str | None:
    """Makes a posterior again, of the moments of its round."""
    found = facts.tensors(facts.posteriors[before["model_id"], before["version"]])
    rank = facts.trainings[used[0]["training_id"]]["spec"]["uncertainty"]["options"]["rank"]
    moments = [facts.tensors(update["sha256"]) for update in used]
    return tensors.same(found, tensors.posterior(moments, [update["num_examples"] for update in used], rank))
