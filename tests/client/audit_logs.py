"""Audit logs of several chains, as a server would write them, and what can be done to them."""

import json
from dataclasses import replace

from client.scripted import MODEL, USER
from fedround_client import AuditEntry, AuditHead
from fedround_client.audit_entry import START

SERVER = ""


def rehashed(entry, previous, sequence):
    """Returns an entry with its place in a chain, and the hash of that."""
    placed = replace(entry, previous_hash=previous, sequence=sequence)
    return replace(placed, hash=placed.digest())


class Log:
    """An audit log; `items` has the entries of each chain by its id, and `starts` what each begins with."""

    def __init__(self):
        self.chains = {SERVER: []}
        self.starts = {SERVER: START}

    def add(self, action, chain=SERVER, *, training_id=None, subject="", **facts):
        """Appends an entry; the first one of a training begins its chain."""
        if chain not in self.chains:
            begun = self.add("chain_begun", training_id=chain)
            self.chains[chain], self.starts[chain] = [], begun.hash
        entries = self.chains[chain]
        about = (action, chain if training_id is None else training_id, MODEL, str(subject), json.dumps(facts))
        entry = AuditEntry(0, 1_000_000, USER, *about, "", "", chain)
        previous = entries[-1].hash if entries else self.starts[chain]
        entries.append(rehashed(entry, previous, len(entries) + 1))
        return entries[-1]

    def record_heads(self):
        """Records the heads of the trainings' chains, and returns that of the server's."""
        heads = {chain: str(self.head(chain)) for chain in self.chains if chain != SERVER}
        self.add("heads_recorded", heads=heads)
        return self.head(SERVER)

    def head(self, chain):
        """The head of a chain that is not empty."""
        last = self.chains[chain][-1]
        return AuditHead(last.sequence, last.hash, chain)

    def rewrite(self, chain, entries):
        """Replaces the entries of a chain by others, with valid hashes."""
        self.chains[chain] = []
        previous = self.starts[chain]
        for sequence, entry in enumerate(entries, 1):
            self.chains[chain].append(rehashed(replace(entry, chain=chain), previous, sequence))
            previous = self.chains[chain][-1].hash

    def items(self):
        """What a reader gets."""
        found = []
        for chain, entries in self.chains.items():
            found += entries
            found.append(self.head(chain) if entries else AuditHead(0, self.starts[chain], chain))
        return found
