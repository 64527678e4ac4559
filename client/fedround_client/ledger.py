"""The contribution ledger: each accepted update is counted once, or superseded with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Facts = Mapping[str, Any]


@dataclass
class _Round:
    """A round that is not over.

    Attributes:
        waiting: Updates that were accepted, and what became of them is not told yet.
        participants: Those that have sent one.
        totals: Denominators of the weights so far.
    """

    number: int
    open: bool = True
    waiting: dict[str, Facts] = field(default_factory=dict)
    participants: set[str] = field(default_factory=set)
    counted: int = 0
    examples: int = 0
    totals: set[int] = field(default_factory=set)


class Ledger:
    """Follows rounds and versions through the audit log.

    Attributes:
        accepted: Updates and reports that were accepted.
        counted: How many of them counted.
        superseded: How many will not count.
        versions: Versions of models that trainings made.
    """

    def __init__(self) -> None:
        """Begins before the first entry."""
        self.accepted = 0
        self.counted = 0
        self.superseded = 0
        self.versions = 0
        self._rounds: dict[str, _Round] = {}
        self._done: dict[str, Facts] = {}
        self._last_round: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._ids: set[str] = set()
        self._actions: Mapping[str, Callable[[str, str, str, Facts], None]] = {
            "model_created": self._model_created,
            "round_opened": self._round_opened,
            "update_accepted": self._update_accepted,
            "report_accepted": self._update_accepted,
            "round_closed": self._round_closed,
            "updates_counted": self._updates_counted,
            "updates_superseded": self._updates_superseded,
            "round_done": self._round_done,
            "round_abandoned": self._round_abandoned,
            "version_made": self._version_made,
        }

    def add(self, action: str, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        """Follows one entry; those about other things are none of the ledger's.

        Raises:
            ValueError: What it tells cannot be, after what the entries before it told.
        """
        follow = self._actions.get(action)
        if follow is not None:
            follow(training_id, model_id, subject, facts)

    def _model_created(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        _check(model_id not in self._latest, f"the model {model_id} was created before")
        self._latest[model_id] = 0

    def _round_opened(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        number = int(subject)
        _check(training_id not in self._rounds, f"a round of the training {training_id} is not over")
        _check(number == self._last_round.get(training_id, -1) + 1, f"round {number} is not the next one")
        self._rounds[training_id] = _Round(number)
        self._last_round[training_id] = number

    def _update_accepted(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        found = self._round(training_id, facts["round"])
        _check(found.open, f"the update {subject} was accepted for a round that was closed")
        _check(subject not in self._ids, f"the update {subject} was accepted before")
        _check(facts["participant_id"] not in found.participants, "the participant has sent another update before")
        self._ids.add(subject)
        found.participants.add(facts["participant_id"])
        found.waiting[subject] = facts
        self.accepted += 1

    def _round_closed(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        found = self._round(training_id, int(subject))
        _check(found.open, "the round was closed before")
        found.open = False

    def _updates_counted(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        found = self._round(training_id, int(subject))
        _check(not found.open, "updates count before the round is closed")
        for update in facts["updates"]:
            update_id, weight = update["update_id"], update["weight"]
            accepted = found.waiting.pop(update_id, None)
            if accepted is None:
                raise ValueError(
                    f"the update {update_id} counts, and was not accepted, or counted or superseded before"
                )
            for name in ("participant_id", "sha256", "num_examples"):
                _check(
                    update[name] == accepted[name], f"the update {update_id} had another {name} when it was accepted"
                )
            if weight:
                examples, _, total = weight.partition("/")
                _check(
                    int(examples) == update["num_examples"], f"the update {update_id} has a weight of its own making"
                )
                found.totals.add(int(total))
            found.counted += 1
            found.examples += update["num_examples"]
        self.counted += len(facts["updates"])

    def _updates_superseded(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        found = self._round(training_id, int(subject))
        _check(bool(facts["reason"]), "updates are superseded without a reason")
        for update_id in facts["update_ids"]:
            _check(found.waiting.pop(update_id, None) is not None, f"the update {update_id} is none that waits")
        self.superseded += len(facts["update_ids"])

    def _round_done(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        found = self._end(training_id, int(subject))
        _check(not found.open, "the round was not closed before it was done")
        _check(facts["num_updates"] == found.counted, f"{found.counted} updates counted, not {facts['num_updates']}")
        _check(facts["num_examples"] == found.examples, f"{found.examples} examples counted")
        _check(found.totals <= {found.examples}, "the weights of the updates do not add up to one")
        self._done[training_id] = {**facts, "round": found.number}

    def _round_abandoned(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        self._end(training_id, int(subject))

    def _version_made(self, training_id: str, model_id: str, subject: str, facts: Facts) -> None:
        version, made_by = int(subject), self._done.pop(training_id, None)
        _check(version == self._latest.get(model_id, -2) + 1, f"version {version} is not the next one of its model")
        _check(made_by is not None, "a version was made, and no round was done, or it has made another one")
        for name, value in (made_by or {}).items():
            _check(facts[name] == value, f"version {version} has another {name} than the round that made it")
        self._latest[model_id] = version
        self.versions += 1

    def _round(self, training_id: str, number: int) -> _Round:
        found = self._rounds.get(training_id)
        if found is None or found.number != number:
            raise ValueError(f"round {number} of the training {training_id} is not under way")
        return found

    def _end(self, training_id: str, number: int) -> _Round:
        found = self._round(training_id, number)
        forgotten = ", ".join(sorted(found.waiting)[:3])
        _check(
            not found.waiting, f"{len(found.waiting)} accepted updates are neither counted nor superseded: {forgotten}"
        )
        return self._rounds.pop(training_id)


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
