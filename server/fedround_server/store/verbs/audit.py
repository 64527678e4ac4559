"""Verbs about the audit log."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedround_server.aggregators import to_aggregation
from fedround_server.domain.audit import SERVER, AuditEntry, AuditHead, AuditPage, AuditRecord, Contribution, Origin
from fedround_server.domain.errors import ModelNotFound
from fedround_server.store.db.audit_trail import append, record
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.audit import (
    find_entries,
    find_head,
    find_origin,
    list_counted_updates,
    list_unrecorded_heads,
    read_page,
)
from fedround_server.store.queries.model import find_owned_model
from fedround_server.store.queries.user import user_names
from fedround_server.store.tables.audit_schema import AuditRow, RecordedHeadRow
from fedround_server.store.tables.base import BATCH_ROWS

# An entry has to fit into a message.
ENTRY_HEADS = 1000


class AuditVerbs(Verbs):
    """Verbs about the audit log as a whole; every other verb appends its own records."""

    @verb
    def add(self, records: Sequence[AuditRecord]) -> None:
        """Appends records of what no other verb writes."""
        for one in records:
            append(one)

    @verb
    def record_heads(self) -> None:
        """Records the heads of the trainings' chains that have grown, in the server's chain.

        The head of the server's chain then covers all entries that were committed before.
        """
        heads = list_unrecorded_heads()
        for start in range(0, len(heads), ENTRY_HEADS):
            some = heads[start : start + ENTRY_HEADS]
            record("heads_recorded", heads={head.chain: str(head) for head in some})
        for start in range(0, len(heads), BATCH_ROWS):
            rows = [{"chain": head.chain, "sequence": head.sequence} for head in heads[start : start + BATCH_ROWS]]
            RecordedHeadRow.insert_many(rows).on_conflict(
                conflict_target=[RecordedHeadRow.chain], preserve=[RecordedHeadRow.sequence]
            ).execute()

    @verb
    def head(self, chain: str = SERVER) -> AuditHead:
        """Returns the head of a chain, by default the server's; that of a training without one has the sequence 0."""
        return find_head(chain)

    @verb
    def read(self, chain: str, after: int, until: int, limit: int) -> list[AuditEntry]:
        """Returns entries of a chain in order: those after one sequence, up to and including another."""
        return find_entries(chain, after, until, limit)

    @snapshot
    def read_on(self, chain: str, after: int, until: int, limit: int) -> AuditPage:
        """Returns entries of all chains in order: those behind one; see `read_page`."""
        return read_page(chain, after, until, limit)

    @snapshot
    def origin(self, model_id: str, version: int | None, owner_id: str) -> Origin:
        """Returns the origin of a model version, by default the latest, with the updates that made it.

        Raises:
            ModelNotFound: The user owns no such model, or it has no such version.
        """
        model = find_owned_model(model_id, owner_id)
        wanted = model.version if version is None else version
        made = find_origin(model_id, wanted)
        if made is None:
            raise ModelNotFound(f"{model_id} in version {wanted} (the latest is {model.version})")
        facts = json.loads(made.facts)
        origin = Origin(model_id, wanted, facts["sha256"], made.time, made.sequence, made.chain)
        if not wanted:
            return origin
        return replace(
            origin,
            training_id=made.training_id,
            round=facts["round"],
            aggregation=to_aggregation(facts),
            num_examples=facts["num_examples"],
            contributions=_contributions(made, facts),
        )


def _contributions(made: AuditRow, facts: Mapping[str, Any]) -> tuple[Contribution, ...]:
    rounds = range(facts["round"] + 1 - facts["rounds"], facts["round"] + 1)
    found = [
        (int(row.subject), update)
        for row in list_counted_updates(made.training_id, rounds)
        for update in json.loads(row.facts)["updates"]
        if update["participant_id"] not in facts.get("without", ())
    ]
    names = user_names(sorted({update["participant_id"] for _, update in found}))
    return tuple(
        Contribution(
            round=number,
            update_id=update["update_id"],
            user_id=update["participant_id"],
            user_name=names.get(update["participant_id"], ""),
            sha256=update["sha256"],
            num_examples=update["num_examples"],
            weight=f"{update['num_examples']}/{facts['num_examples']}" if "without" in facts else update["weight"],
        )
        for number, update in found
    )
