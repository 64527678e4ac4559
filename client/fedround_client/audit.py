"""The calls of AuditService: read and verify the audit log, and find the updates behind a version of a model."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from itertools import groupby

from fedround.v1 import audit_pb2
from fedround.v1.audit_pb2 import Contribution, Origin, ReplayRoundResponse, ReplayTrainingResponse
from fedround_client.audit_chain import AuditReport, verify
from fedround_client.audit_entry import SERVER, AuditEntry, AuditHead
from fedround_client.errors import FedroundError
from fedround_client.retry import ATTEMPTS
from fedround_client.rpc import Rpc, Stream


class AuditCalls:
    """The calls of AuditService."""

    _rpc: Rpc

    def audit_head(self) -> AuditHead:
        """Returns the head of the server's chain in the audit log, which is its last entry. For admins.

        The server has recorded the heads of all other chains there, so that this one covers all entries before.

        Raises:
            RoleRequired: You are not an admin.
        """
        return _head(self._rpc.unary(self._rpc.audit.GetAuditHead, audit_pb2.GetAuditHeadRequest()).head)

    def read_audit(
        self, after: int = 0, until: AuditHead | None = None, *, chain: str | None = None
    ) -> Iterator[AuditEntry]:
        """Iterates over the entries of the audit log, across lost connections. For admins.

        Args:
            after: Sequence of the entry before the first one in the chain; 0 to start at the beginning.
            until: The last entry; by default the present head.
            chain: UUID of the training whose chain is read alone; an empty text for the server's. By default all are
                read: first the server's, then each training's from its beginning.

        Raises:
            RoleRequired: You are not an admin.
        """
        if chain is None:
            for item in self._read_all(after, until or self.audit_head()):
                if isinstance(item, AuditEntry):
                    yield item
            return
        request = audit_pb2.ReadAuditRequest(after_sequence=after, chain=chain)
        for message in self._read(request):
            until = until or _head(message.head)
            for entry in map(AuditEntry.from_message, message.entries):
                if entry.sequence > until.sequence:
                    return
                yield entry

    def verify_audit(self, anchor: AuditHead | None = None) -> AuditReport:
        """Verifies the whole audit log on this machine, without trust in the server. For admins.

        Args:
            anchor: A head that was recorded earlier. Without one, it cannot be detected that the end was cut off, or
                that the whole log was rewritten.

        Raises:
            AuditBroken: The log was changed, or is incomplete.
            RoleRequired: You are not an admin.
        """
        return verify(self.read_audit_log(), anchor)

    def read_audit_log(self) -> Iterator[AuditEntry | AuditHead]:
        """Iterates over the entries of all chains of the audit log, each with its head behind it. For admins.

        Raises:
            RoleRequired: You are not an admin.
        """
        return self._read_all(0, self.audit_head())

    def contributions(self, model_id: str, version: int | None = None) -> tuple[Origin, list[Contribution]]:
        """Returns the updates that a version of a model of yours was aggregated from. For actors.

        Args:
            model_id: UUID of the model.
            version: The version; None for the latest one.

        Returns:
            The origin of the version, and the updates, sorted by round and participant.

        Raises:
            ModelNotFound: You own no such model, or it has no such version.
        """
        request = audit_pb2.GetContributionsRequest(model_id=model_id, version=version)
        contributions: list[Contribution] = []
        origin = Origin()
        for page in self._rpc.pages(self._rpc.audit.GetContributions, request):
            # A newer version may be the latest one when the next page is fetched.
            origin, request.version = page.origin, page.origin.version
            contributions += page.contributions
        return origin, contributions

    def replay_round(self, training_id: str, number: int, without: Iterable[str] = ()) -> ReplayRoundResponse:
        """Has the server compute the version that a round has made once more, from the stored updates. For the actor.

        Args:
            training_id: UUID of the training.
            number: Number of the round, from 0.
            without: UUIDs of users whose updates are left out: the result is what the round would have made of its
                model without them. In the rounds that follow, the others would have trained another model, so the
                effects of several rounds do not add up.

        Returns:
            The recorded and the computed digest, which are equal if the version can be reproduced, and the L2 distance
            between the two.

        Raises:
            ReplayImpossible: The round made no version, or a file that it needs is not stored any more.
            NotActor: You only take part in the training.
            RoundNotFound: There is no such round (yet).
            FieldInvalid: A user has no update in this round.
        """
        request = audit_pb2.ReplayRoundRequest(training_id=training_id, round=number, without_client_ids=without)
        return self._rpc.unary(self._rpc.audit.ReplayRound, request, timeout=None)

    def replay_training(
        self, training_id: str, without: Iterable[str] = (), model_name: str = "", *, request_id: str | None = None
    ) -> Iterator[ReplayTrainingResponse]:
        """Has the server compute the models that would have come of a training's updates without some participants.

        Round by round, the others' updates are taken for differences from the model that they started from, and
        aggregated around the branch's model. For the first round without them that is exact; for the rounds that
        follow it is an estimate, since the others would have trained another model. For the actor.

        Args:
            training_id: UUID of the training.
            without: UUIDs of users whose updates are left out.
            model_name: Name of the model that these versions become, all at once at the end; empty to store nothing.
            request_id: UUID of the request: a repeated one yields the model that the first one made. Random by default.

        Yields:
            One message for each round that made a version; with a model_name, a last one with only the `model_id`.

        Raises:
            ReplayImpossible: A file that a round needs is not stored any more, or the training has made no version.
            NotActor: You only take part in the training.
            FieldInvalid: A user has no update in any round.
            Quota: Your files have too many bytes.
        """
        request = audit_pb2.ReplayTrainingRequest(
            training_id=training_id,
            without_client_ids=without,
            model_name=model_name,
            request_id=request_id or str(uuid.uuid4()),
        )
        stream = self._rpc.open(self._rpc.audit.ReplayTraining, request)
        try:
            # A round of a large model takes longer than a server that sends nothing may be silent elsewhere.
            with self._rpc.typed_errors():
                yield from stream
        finally:
            stream.cancel()

    def _read_all(self, after: int, head: AuditHead) -> Iterator[AuditEntry | AuditHead]:
        """Yields the entries of the server's chain up to a head, that head, and then the same of each training."""
        request = audit_pb2.ReadAuditRequest(after_sequence=after, all_chains=True, until_sequence=head.sequence)
        in_server_chain = True
        for message in self._read(request):
            for item in _items(message):
                if in_server_chain and item.chain != SERVER:
                    in_server_chain = False
                    yield head
                # A server of an earlier version knows no `until_sequence`.
                if item.chain != SERVER or item.sequence <= head.sequence:
                    yield item
        if in_server_chain:
            yield head

    def _read(self, request: audit_pb2.ReadAuditRequest) -> Iterator[audit_pb2.ReadAuditResponse]:
        """Yields messages; if a connection is lost, it goes on behind the last entry."""
        stream: Stream[audit_pb2.ReadAuditResponse] | None = None
        messages: Iterator[audit_pb2.ReadAuditResponse] = iter(())
        try:
            while True:
                message = None
                # Must not yield within an attempt: it would treat the GeneratorExit of a closed generator as a failure.
                for attempt in self._rpc.retrying(ATTEMPTS):
                    with attempt:
                        if stream is None:
                            stream = self._rpc.open(self._rpc.audit.ReadAudit, request)
                            messages = self._rpc.read(stream)
                        try:
                            message = next(messages, None)
                        except FedroundError:
                            stream = None
                            raise
                if message is None:
                    return
                yield message
                if message.entries:
                    last = message.entries[-1]
                    request.chain, request.after_sequence = last.chain, last.sequence
        finally:
            if stream is not None:
                stream.cancel()


def _items(message: audit_pb2.ReadAuditResponse) -> Iterator[AuditEntry | AuditHead]:
    """Yields what a message has, in order: each head follows the last entry of its chain."""
    heads = {head.chain: _head(head) for head in message.heads}
    here = {entry.chain for entry in message.entries}
    yield from (head for chain, head in heads.items() if chain not in here)
    for chain, entries in groupby(message.entries, lambda entry: entry.chain):
        yield from map(AuditEntry.from_message, entries)
        if chain in heads:
            yield heads[chain]


def _head(message: audit_pb2.AuditHead) -> AuditHead:
    return AuditHead(message.sequence, message.hash, message.chain)
