"""Invariants of asynchronous trainings."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from chaos.facts import Facts, Row
from chaos.history import History
from chaos.tensors import FLOATS, LARGEST, Tensor, Tensors

Findings = Iterator[tuple[str, str]]


def buffering_of(training: Row) -> dict[str, Any] | None:
    """Returns the buffering of a training, as the database has it."""
    found: dict[str, Any] | None = training["spec"]["aggregation"].get("buffering")
    return found


def staleness(facts: Facts) -> list[int]:
    """Returns how many versions were made between where each update of an asynchronous training started and counts."""
    versions = {(row["training_id"], row["number"]): row["model_version"] for row in facts["round"]}
    updates = (row for row in facts["round_update"] if row["base_version"] is not None)
    return [versions[row["training_id"], row["number"]] - row["base_version"] for row in updates]


def buffered_updates_count_once_in_time(facts: Facts, history: History) -> Findings:
    """Each receipt is in one version or superseded; none is too stale; none from a version counts beside another.

    The ledger says so. The versions that an update may still start from are stored.
    """
    buffered = {key: found for key, row in facts.trainings.items() if (found := buffering_of(row)) is not None}
    versions: dict[tuple[str, str], int] = {}
    outcomes: Counter[str] = Counter()
    counted: Counter[tuple[str, str, int]] = Counter()
    for row in facts.entries:
        training_id = row["training_id"]
        if training_id not in buffered:
            continue
        said = json.loads(row["facts"])
        if row["action"] == "round_opened":
            versions[training_id, row["subject"]] = said["version"]
        elif row["action"] == "updates_superseded":
            outcomes.update(said["update_ids"])
        elif row["action"] == "updates_counted":
            outcomes.update(one["update_id"] for one in said["updates"])
            most = buffered[training_id]["options"]["max_staleness"]
            for one in (update for update in said["updates"] if update["sha256"] is not None):
                staleness = versions[training_id, row["subject"]] - one["base_version"]
                counted[training_id, one["participant_id"], one["base_version"]] += 1
                if not 0 <= staleness <= most:
                    yield training_id, f"the update {one['update_id']} counts with the staleness {staleness}"
    for (training_id, user_id, version), number in counted.items():
        if number > 1:
            yield training_id, f"{number} updates of {user_id} from version {version} count"
    for entry in history.of("receipt"):
        if entry["training_id"] in buffered and outcomes[entry["update_id"]] != 1:
            yield entry["training_id"], f"the update {entry['update_id']} has {outcomes[entry['update_id']]} outcomes"
    stored = {(row["model_id"], row["version"]): row["stored"] for row in facts["model_version"]}
    for training_id, found in buffered.items():
        training = facts.trainings[training_id]
        latest = training["model_version"]
        for version in range(max(0, latest - found["options"]["max_staleness"]), latest + 1):
            if not stored.get((training["model_id"], version)):
                yield training_id, f"version {version} is not stored, and the latest is {latest}"


def moved(update: Tensors, base: Tensors, model: Tensors, buffering: dict[str, Any], staleness: int) -> Tensors:
    """Returns what an update of a version stands for, in float64: FedBuff moves it, FedAsync moves the model to it."""
    options = buffering["options"]
    factor = options.get("alpha", 1.0) * (1 + staleness) ** -options["exponent"]
    is_own = buffering["name"] == "fed_buff"
    if (
        factor == 1
        and not (is_own and staleness)
        and not any(one.dtype != model[name].dtype for name, one in update.items())
    ):
        return update
    return {
        name: _moved(tensor, base[name], model[name], factor, from_base=is_own)
        if model[name].dtype in FLOATS
        else tensor
        for name, tensor in update.items()
    }


def _moved(tensor: Tensor, base: Tensor, model: Tensor, factor: float, *, from_base: bool) -> Tensor:
    if tensor.dtype == model.dtype:
        origin = base if from_base else model
        differences = [one - other for one, other in zip(tensor.values, origin.values, strict=True)]
    elif from_base:
        differences = list(tensor.values)
    else:
        both = zip(base.values, model.values, tensor.values, strict=True)
        differences = [start - other + one for start, other, one in both]
    most = LARGEST[model.dtype]
    sums = (start + factor * one for start, one in zip(model.values, differences, strict=True))
    return Tensor(model.dtype, model.shape, tuple(max(-most, min(most, one)) for one in sums))
