"""Invariants of what rounds make: versions, the states of their aggregations, and posteriors."""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from chaos import aggregation, tensors
from chaos.buffering_rules import moved
from chaos.facts import Facts, Row
from chaos.history import History
from chaos.lookups import makes_version, stages_by_model

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
        before = versions.get((training["model_id"], row["model_version"]))
        if makes and before and version and aggregation.is_private(training["spec"]["aggregation"]):
            if (wrong := _wrong_private_version(facts, training, before, version)) is not None:
                yield row["training_id"], f"what round {row['number']} has made is wrong: {wrong}"
            continue
        if version is None or not version["stored"] or not used:
            yield from [] if used and version else [(row["training_id"], f"round {row['number']} has made nothing")]
            continue
        before = versions[training["model_id"], row["model_version"]]
        try:
            stages = training["spec"]["aggregation"]
            wrong = (
                wrong_version(facts, stages, row, before, version, used)
                if makes
                else _wrong_posterior(facts, before, used)
            )
        except FileNotFoundError:
            # `references_lead_somewhere` finds those that are needed; a loss of power may take the others.
            continue
        except (OSError, ValueError, KeyError, struct.error) as error:
            wrong = repr(error)
        if wrong is not None:
            yield row["training_id"], f"what round {row['number']} has made is wrong: {wrong}"


def copies_keep_their_states(facts: Facts, history: History) -> Findings:
    """A copy of a version has the slots that its training uses, with the same files and steps, and no others."""
    used_by = stages_by_model(facts)
    for model in facts["model"]:
        if model["source_model_id"] is None:
            continue
        training_id, stages = used_by[model["model_id"]]
        had, has = (
            {slot: (one["sha256"], one["details"]) for slot, one in facts.states.get(key, {}).items()}
            for key in ((model["source_model_id"], model["source_version"]), (model["model_id"], 0))
        )
        used = aggregation.slots(stages) - {"tree/key"}
        if has != {slot: one for slot, one in had.items() if slot in used}:
            yield training_id, f"it started with the state {has}, of {had}"


def _wrong_private_version(facts: Facts, training: Row, before: Row, version: Row) -> str | None:
    """Compares what has no noise: buffers, integers, and the names and steps of the state."""
    stages = training["spec"]["aggregation"]
    new = facts.states.get((version["model_id"], version["version"]), {})
    if set(new) != aggregation.slots(stages) - {"tree/key"}:
        return f"its state has {sorted(new)}"
    if not (before["stored"] and version["stored"]):
        return None
    old, made = facts.version(before), facts.version(version)
    if made.keys() != old.keys():
        return f"it has the tensors {sorted(made)}"
    for name, tensor in made.items():
        if (tensor.dtype, tensor.shape) != (old[name].dtype, old[name].shape):
            return f"{name} is {tensor.dtype} of {tensor.shape}"
        if tensor.dtype not in tensors.FLOATS and tensor != old[name]:
            return f"{name} has changed"
        if not all(math.isfinite(value) for value in tensor.values if tensor.dtype in tensors.FLOATS):
            return f"{name} is not finite"
    return None


def wrong_version(
    facts: Facts,
    stages: Mapping[str, Any],
    row: Row,
    before: Row,
    version: Row,
    used: list[Row],
    left: Row | None = None,
) -> str | None:
    """Makes a version and its state again; returns what is wrong with those that are there.

    Args:
        facts: All of them.
        stages: The aggregation.
        row: The round.
        before: The version that its round started from.
        version: The version.
        used: The updates.
        left: The version whose state it went on with; that which its round started from by default.
    """
    sent, found = [tensors.divided(facts.tensors(update["sha256"])) for update in used], facts.version(version)
    inputs, controls = [own for own, _ in sent], [control for _, control in sent]
    weights = [update["num_examples"] for update in used]
    differs = any(tensors.has_differences(update, found) for update in inputs)
    training = facts.trainings[row["training_id"]]
    # That of the training, also for its shadows.
    buffering = training["spec"]["aggregation"].get("buffering")
    needs_model = buffering or differs or version["delta_sha256"] or not any(weights) or not aggregation.is_mean(stages)
    if needs_model and not before["stored"]:
        return None
    model = facts.version(before) if before["stored"] else {}
    if buffering:
        versions = {one["version"]: one for one in facts["model_version"] if one["model_id"] == training["model_id"]}
        origins = [versions.get(update["base_version"]) for update in used]
        if not all(one is not None and one["stored"] for one in origins):
            return None
        inputs = [
            moved(update, facts.version(base), model, buffering, before["version"] - base["version"])
            for update, base in zip(inputs, origins, strict=True)
            if base is not None
        ]
    elif differs:
        inputs = [tensors.whole(update, model) for update in inputs]
    old, new = (facts.states.get((one["model_id"], one["version"]), {}) for one in (left or before, version))
    state = {slot: facts.tensors(one["sha256"]) for slot, one in old.items()}
    steps, made_steps = ({slot: row["details"]["steps"] for slot, row in rows.items()} for rows in (old, new))
    exact = aggregation.is_exact(stages) or not any(weights)
    if any(weights):
        updates = zip((update["sha256"] for update in used), inputs, weights, controls, strict=True)
        population = row["population"] or 0
        made, state, steps = aggregation.expected(stages, list(updates), model, state, steps, population)
        made = {**model, **made}
    else:
        made = model
        trained = [name for name in inputs[0] if model[name].dtype in tensors.FLOATS]
        kept = aggregation.resumed(stages, state, trained)
        # A stage that begins anew has its first state, which nothing has made.
        steps = {slot: steps[slot] if slot in kept else 0 for slot in new}
        state = {slot: state[slot] for slot in kept}
    if made_steps != steps:
        return f"the steps of the state are {made_steps} instead of {steps}"
    wrong = [tensors.same(facts.tensors(new[slot]["sha256"]), one, exact=exact) for slot, one in state.items()]
    roots = stages.get("server_optimizer", {}).get("name") in ("adagrad", "adam", "yogi")
    return tensors.same(found, made, exact=exact, roots=roots) or next(filter(None, wrong), None)


def _wrong_posterior(facts: Facts, before: Row, used: list[Row]) -> str | None:
    """Makes a posterior again, of the moments of its round."""
    found = facts.tensors(facts.posteriors[before["model_id"], before["version"]])
    rank = facts.trainings[used[0]["training_id"]]["spec"]["uncertainty"]["options"]["rank"]
    moments = [facts.tensors(update["sha256"]) for update in used]
    return tensors.same(found, tensors.posterior(moments, [update["num_examples"] for update in used], rank))
