"""Invariants of budgets of privacy: what was opened is what was charged, and it costs no more than was allowed."""

import math
from collections.abc import Iterator

from chaos.facts import Facts, Row
from chaos.history import History

Findings = Iterator[tuple[str, str]]


def budgets_are_never_overspent(facts: Facts, history: History) -> Findings:
    """Each round of training was charged once; all together cost no more than the budget, or the training ends."""
    accounts = facts.by("privacy_account", "training_id")
    for training_id, training in facts.trainings.items():
        spec = training["spec"]
        privacy = spec["aggregation"].get("differential_privacy")
        if (privacy is not None) != (training_id in accounts):
            yield training_id, f"its privacy is {privacy}, and its account {accounts.get(training_id)}"
            continue
        if privacy is None:
            continue
        [account] = accounts[training_id]
        opened = sum(_is_charged(row) for row in facts["round"] if row["training_id"] == training_id)
        ledger = sum(
            row["action"] == "round_opened" and '"kind":"TRAIN"' in row["facts"].replace(" ", "")
            for row in facts["audit"]
            if row["training_id"] == training_id
        )
        if not opened == ledger == account["rounds"]:
            yield training_id, f"{opened} rounds were opened, the ledger has {ledger}, and the account {account}"
        allowed, options = account["rounds_allowed"], privacy["options"]
        if allowed is not None and opened > allowed:
            yield training_id, f"{opened} rounds were opened, and {allowed} are allowed"
        fraction = (spec["cohort"] or {}).get("fraction")
        if (
            options["epsilon_budget"]
            and (options["tree"] or fraction is None)
            and _delta(options, opened) > options["delta"]
        ):
            yield training_id, f"{opened} rounds cost more than {options}"
        if training["failure_reason"] == "PRIVACY_BUDGET" and (training["state"], opened) != ("COMPLETED", allowed):
            yield training_id, f"it is {training['state']} after {opened} of {allowed} rounds"


def secrets_are_gone(facts: Facts, history: History) -> Findings:
    """Only the version that a running training goes on from has the secret of its trees."""
    running = {
        (row["model_id"], row["model_version"])
        for row in facts["training"]
        if row["state"] in ("INITIAL", "ONGOING") and row["remove_time"] is None
    }
    trainings = {row["model_id"]: row["training_id"] for row in facts["training"]}
    for row in facts["artifact"]:
        if row["kind"] == "tree/key" and (row["model_id"], row["version"]) not in running:
            yield trainings.get(row["model_id"], ""), f"version {row['version']} still has a secret"


def _is_charged(row: Row) -> bool:
    return row["kind"] == "TRAIN" and row["state"] != "PENDING"


def _delta(options: dict, rounds: int) -> float:  # type: ignore[type-arg]
    """Returns the delta of some rounds without sampling at the epsilon of the budget (Balle and Wang, 2018)."""
    if not rounds:
        return 0.0
    square = sum((step & -step) ** 2 for step in range(1, rounds + 1)) if options["tree"] else rounds
    z, epsilon = options["noise_multiplier"] / math.sqrt(square), options["epsilon_budget"]

    def normal(value: float) -> float:
        return math.erfc(-value / math.sqrt(2)) / 2

    return normal(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * normal(-1 / (2 * z) - epsilon * z)
