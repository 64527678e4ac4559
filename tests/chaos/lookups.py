"""Look-ups in the facts that several invariants share."""

from collections.abc import Mapping
from typing import Any

from chaos.facts import Facts, Row


def events_of(facts: Facts, training_id: str, kind: str, number: int) -> list[Row]:
    """Returns the events of a kind in a round."""
    log = facts.events.get(training_id, [])
    return [event for event in log if event["kind"] == kind and event["payload"]["round"] == number]


def is_present(member: Row, row: Row) -> bool:
    """Returns whether a cohort's member belongs to a round, and was not removed from it."""
    return not member["removed"] and (member["training_id"], member["number"]) == (row["training_id"], row["number"])


def has_left(facts: Facts, training_id: str, user_id: str) -> bool:
    """Returns whether a user was removed from a training."""
    log = facts.events.get(training_id, [])
    return any(event["kind"] == "ClientRemoved" and event["payload"]["client_id"] == user_id for event in log)


def makes_version(training: Row, row: Row) -> bool:
    """Returns whether a round made a version: in a daisy chain, only the last one does."""
    if row["state"] != "DONE" or row["kind"] not in ("TRAIN", "CHAINED"):
        return False
    aggregation = training["spec"]["aggregation"]
    if aggregation["algorithm"] != "fed_dc":
        return True
    options = aggregation["options"]
    return bool((row["step"] + 1) * options["daisy_period"] >= options["aggregation_period"])


def stages_by_model(facts: Facts) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Returns the training and the aggregation that make versions of each model that is trained, or a side branch."""
    found = {row["model_id"]: (row["training_id"], row["spec"]["aggregation"]) for row in facts["training"]}
    for row in facts["shadow"]:
        stages = facts.trainings[row["training_id"]]["spec"]["aggregation"]["shadow"][row["position"]]
        found[row["model_id"]] = (row["training_id"], stages)
    for row in facts["audit"]:
        if row["action"] == "counterfactual_created":
            training = facts.trainings[row["training_id"]]
            found[row["model_id"]] = (row["training_id"], training["spec"]["aggregation"])
    return found


def needs(training: Row) -> int:
    """Returns how many updates with examples the aggregation of a random training needs."""
    mixing = training["spec"]["aggregation"].get("mixing", {"name": ""})
    return 2 * int(mixing["options"]["f"]) + 1 if mixing["name"] == "nearest_neighbor" else 1


def ordered(rounds: dict, training: Row) -> list[Row]:  # type: ignore[type-arg]
    """Returns the rounds of a training by number."""
    return sorted(rounds.get(training["training_id"], []), key=lambda row: row["number"])


def is_needed(row: Row, removed: set[str]) -> bool:
    """Returns whether the file of a version must be there."""
    return bool(row["stored"]) and row["model_id"] not in removed


def enough_updates(training: Row, row: Row, members: int, failed: int) -> int:
    """Returns how many updates are enough for a round with so many members, of which so many failed."""
    own = training["spec"]["evaluation_policy"] if row["kind"] == "EVALUATE" else None
    buffering = training["spec"]["aggregation"].get("buffering") if row["kind"] == "TRAIN" else None
    wanted = buffering["options"]["size"] if buffering else (training["spec"] if own is None else own)["min_updates"]
    most = members if row["needed"] is None else min(row["needed"], members)
    return int(min(wanted, most) if wanted else min(most, members - failed))
