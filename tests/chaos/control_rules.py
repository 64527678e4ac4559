"""Invariants of trainings that are paused, changed and stopped, and of the configuration of their rounds."""

import json
from collections import Counter
from collections.abc import Iterator

from chaos.facts import Facts
from chaos.history import History

Findings = Iterator[tuple[str, str]]
ACTIONS = {
    "PauseTraining": ("pause", "training_paused"),
    "ResumeTraining": ("resume", "training_resumed"),
    "StopTraining": ("stop", "stop_requested"),
    "UpdateConfig": ("update_config", "config_updated"),
}


def changes_are_made_once(facts: Facts, history: History) -> Findings:
    """Each acknowledged change is stored, and a stop has ended its training; each request was carried out once."""
    rows = {(row["training_id"], row["request_id"]): row["action"] for row in facts["control_request"]}
    for entry in history.of("controlled"):
        if rows.get((entry["training_id"], entry["request_id"])) != ACTIONS[entry["what"]][0]:
            yield entry["training_id"], f"was acknowledged {entry.facts}"
        training = facts.trainings[entry["training_id"]]
        ended = training["stop"] is not None and training["state"] in ("COMPLETED", "ERROR")
        if entry["what"] == "StopTraining" and not (ended or training["remove_time"]):
            yield entry["training_id"], f"was stopped, and is {training['state']}"
    recorded = Counter((row["training_id"], row["action"]) for row in facts["audit"])
    stored = Counter((row["training_id"], row["action"]) for row in facts["control_request"])
    for training_id in facts.trainings:
        for action, name in ACTIONS.values():
            # All changes of these runs have a request id.
            if recorded[training_id, name] != stored[training_id, action]:
                yield training_id, f"{stored[training_id, action]} requests to {action} are recorded as {recorded}"


def no_round_opens_when_it_may_not(facts: Facts, history: History) -> Findings:
    """During a pause, and after a stop was asked for, no round opens; what was stopped has ended, and says so."""
    for training_id, log in facts.events.items():
        paused = stopped = False
        last = -1
        for event in log:
            kind, payload = event["kind"], event["payload"]
            paused = kind == "TrainingPaused" or (paused and kind != "TrainingResumed")
            stopped = stopped or kind == "StopRequested"
            if kind == "RoundStarted" and payload["round"] > last:
                last = payload["round"]
                if paused or stopped:
                    yield str(training_id), f"round {last} was opened: paused {paused}, stopped {stopped}"
            training = facts.trainings[str(training_id)]
            if kind == "TrainingFinished" and payload["stopped"] != (training["stop"] is not None):
                yield str(training_id), f"stopped is {training['stop']}, and the log ends with {payload}"


def configurations_are_as_recorded(facts: Facts, history: History) -> Findings:
    """What a subscriber got in a round, whenever it got it, is what the ledger has."""
    recorded = {
        (row["training_id"], int(row["subject"])): json.loads(row["facts"]).get("config", {})
        for row in facts["audit"]
        if row["action"] == "round_opened"
    }
    for entry in history.of("config"):
        if recorded[entry["training_id"], entry["round"]] != entry["config"]:
            yield entry["training_id"], f"round {entry['round']} had {entry['config']}, and the ledger has another one"
