"""The contribution ledger of the audit log: each accepted update is counted once, or superseded with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedround_client.audit_entry import AuditEntry

Facts = Mapping[str, Any]

MAX_COUNT = 2**63 - 1
"""Largest count that the server can store."""


@dataclass
class _Round:
    """A round that has not ended.

    Attributes:
        number: Number of the round.
        open: Whether it accepts updates.
        waiting: The facts of updates that were accepted, and neither counted nor superseded, by update id.
        participants: Ids of the participants whose updates are waiting or counted.
        counted: How many updates were counted.
        examples: Number of their examples.
        totals: Denominators of their weights.
    """

    number: int
    open: bool = True
    waiting: dict[str, Facts] = field(default_factory=dict)
    participants: set[str] = field(default_factory=set)
    counted: int = 0
    examples: int = 0
    totals: set[int] = field(default_factory=set)


class Ledger:
    """Checks that the rounds and versions in an audit log are consistent.

    Attributes:
        accepted: Updates and reports that were accepted.
        counted: How many of them were counted.
        superseded: How many will not be counted.
        versions: Versions of models that trainings produced.
    """

    def __init__(self) -> None:
        """Creates a ledger without entries."""
        self.accepted = 0
        self.counted = 0
        self.superseded = 0
        self.versions = 0
        self._rounds: dict[str, _Round] = {}
        self._done: dict[str, Facts] = {}
        self._last_round: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._ids: set[str] = set()
        self._handlers: Mapping[str, Callable[[AuditEntry, Facts], None]] = {
            "model_created": self._model_created,
            "round_opened": self._round_opened,
            "update_accepted": self._update_accepted,
            "report_accepted": self._update_accepted,
            "round_closed": self._round_closed,
            "round_reopened": self._round_reopened,
            "updates_counted": self._updates_counted,
            "updates_superseded": self._updates_superseded,
            "round_done": self._round_done,
            "round_abandoned": self._round_abandoned,
            "version_made": self._version_made,
        }

    def add(self, entry: AuditEntry, facts: Facts) -> None:
        """Adds an entry. Entries that do not concern rounds, updates or versions are ignored.

        Args:
            entry: The next entry of the log.
            facts: Its facts, parsed.

        Raises:
            ValueError: The entry contradicts the entries before it.
            KeyError, TypeError, AttributeError: The facts lack a field, or one has another type.
        """
        handle = self._handlers.get(entry.action)
        if handle is not None:
            handle(entry, facts)

    def _model_created(self, entry: AuditEntry, facts: Facts) -> None:
        _check(entry.model_id not in self._latest, f"the model {entry.model_id} was created before")
        self._latest[entry.model_id] = 0

    def _round_opened(self, entry: AuditEntry, facts: Facts) -> None:
        number = _number(entry.subject)
        _check(entry.training_id not in self._rounds, f"a round of the training {entry.training_id} has not ended")
        _check(number == self._last_round.get(entry.training_id, -1) + 1, f"round {number} is not the next one")
        self._rounds[entry.training_id] = _Round(number)
        self._last_round[entry.training_id] = number

    def _update_accepted(self, entry: AuditEntry, facts: Facts) -> None:
        round_ = self._round(entry.training_id, count_of(facts, "round"))
        _check(round_.open, f"the update {entry.subject} was accepted for a round that was closed")
        _check(entry.subject not in self._ids, f"the update {entry.subject} was accepted before")
        _check(facts["participant_id"] not in round_.participants, "the participant has sent another update before")
        self._ids.add(entry.subject)
        round_.participants.add(facts["participant_id"])
        round_.waiting[entry.subject] = facts
        self.accepted += 1

    def _round_closed(self, entry: AuditEntry, facts: Facts) -> None:
        round_ = self._round(entry.training_id, _number(entry.subject))
        _check(round_.open, "the round was closed before")
        round_.open = False

    def _round_reopened(self, entry: AuditEntry, facts: Facts) -> None:
        round_ = self._round(entry.training_id, _number(entry.subject))
        _check(not round_.open, "the round is opened again, but was not closed")
        _check(not round_.counted, "the round is opened again, but its updates were counted")
        round_.open = True

    def _updates_counted(self, entry: AuditEntry, facts: Facts) -> None:
        round_ = self._round(entry.training_id, _number(entry.subject))
        _check(not round_.open, "updates are counted before the round is closed")
        for update in facts["updates"]:
            update_id, weight = update["update_id"], update["weight"]
            accepted = round_.waiting.pop(update_id, None)
            if accepted is None:
                raise ValueError(
                    f"the update {update_id} is counted, but was not accepted, or was counted or superseded before"
                )
            for name in ("participant_id", "sha256", "num_examples"):
                if update[name] != accepted[name]:
                    raise ValueError(f"the update {update_id} had another {name} when it was accepted")
            if update.get("base_version") != accepted.get("base_version"):
                raise ValueError(f"the update {update_id} had another base_version when it was accepted")
            num_examples = count_of(update, "num_examples")
            if weight:
                examples, _, total = weight.partition("/")
                _check(
                    _number(examples) == num_examples,
                    f"the weight of the update {update_id} is not its num_examples",
                )
                round_.totals.add(_number(total))
            round_.counted += 1
            round_.examples += num_examples
        self.counted += len(facts["updates"])

    def _updates_superseded(self, entry: AuditEntry, facts: Facts) -> None:
        round_ = self._round(entry.training_id, _number(entry.subject))
        _check(bool(facts["reason"]), "updates are superseded without a reason")
        for update_id in facts["update_ids"]:
            accepted = round_.waiting.pop(update_id, None)
            if accepted is None:
                raise ValueError(f"the update {update_id} is superseded, but was not waiting")
            # Its participant may send another one.
            round_.participants.discard(accepted["participant_id"])
        self.superseded += len(facts["update_ids"])

    def _round_done(self, entry: AuditEntry, facts: Facts) -> None:
        round_ = self._end(entry.training_id, _number(entry.subject))
        _check(not round_.open, "the round is done, but was not closed")
        num_updates = count_of(facts, "num_updates")
        _check(num_updates == round_.counted, f"{round_.counted} updates were counted, not {num_updates}")
        _check(count_of(facts, "num_examples") == round_.examples, f"{round_.examples} examples were counted")
        _check(round_.totals <= {round_.examples}, "the weights of the updates do not add up to one")
        self._done[entry.training_id] = {**facts, "round": round_.number}

    def _round_abandoned(self, entry: AuditEntry, facts: Facts) -> None:
        self._end(entry.training_id, _number(entry.subject))

    def _version_made(self, entry: AuditEntry, facts: Facts) -> None:
        version, done = _number(entry.subject), self._done.pop(entry.training_id, None)
        _check(
            version == self._latest.get(entry.model_id, -2) + 1, f"version {version} is not the next one of its model"
        )
        _check(done is not None, "a version was produced, but no round was done, or that produced another one")
        for name, value in (done or {}).items():
            _check(facts[name] == value, f"version {version} has another {name} than the round that produced it")
        self._latest[entry.model_id] = version
        self.versions += 1

    def _round(self, training_id: str, number: int) -> _Round:
        round_ = self._rounds.get(training_id)
        if round_ is None or round_.number != number:
            raise ValueError(f"round {number} of the training {training_id} is not in progress")
        return round_

    def _end(self, training_id: str, number: int) -> _Round:
        round_ = self._round(training_id, number)
        some = ", ".join(sorted(round_.waiting)[:3])
        _check(not round_.waiting, f"{len(round_.waiting)} accepted updates are neither counted nor superseded: {some}")
        return self._rounds.pop(training_id)


def count_of(facts: Facts, name: str) -> int:
    """Returns a field that is a count.

    Raises:
        ValueError: It is not a whole number, or one that no server has stored.
        KeyError: The facts do not have it.
    """
    value = facts[name]
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{name} is not a whole number from 0 to {MAX_COUNT}")
    return value


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a whole number") from None


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
