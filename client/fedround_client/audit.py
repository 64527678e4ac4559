"""The audit log: reading it, verifying it, and which updates made which version of a model."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from fedround.v1 import audit_pb2
from fedround.v1.audit_pb2 import Contribution, Origin
from fedround_client.audit_chain import AuditChainVerifier, AuditEntry, AuditHead, AuditReport
from fedround_client.rpc import ATTEMPTS, Rpc, Stream


class AuditCalls:
    """The calls of AuditService."""

    _rpc: Rpc

    def audit_head(self) -> AuditHead:
        """Answers where the audit log ends. For admins.

        Raises:
            RoleRequired: You are no admin.
        """
        return _head(self._rpc.unary(self._rpc.audit.GetAuditHead, audit_pb2.GetAuditHeadRequest()).head)

    def read_audit(self, after: int = 0, until: AuditHead | None = None) -> Iterator[AuditEntry]:
        """Iterates over the audit log, across lost connections. For admins.

        Args:
            after: Sequence to start behind; 0 for the first entry.
            until: Where to end; by default where the log ends now.

        Raises:
            RoleRequired: You are no admin.
        """
        return self._read(after, until or self.audit_head())

    def verify_audit(self, anchor: AuditHead | None = None) -> AuditReport:
        """Verifies the whole audit log here, whatever the server thinks of it. For admins.

        Args:
            anchor: A head that was noted earlier: without one, nobody can tell that the end was cut off, or that all
                was written anew.

        Raises:
            AuditBroken: It is not what a server wrote, or not all of it.
            RoleRequired: You are no admin.
        """
        head, verifier = self.audit_head(), AuditChainVerifier(anchor)
        for entry in self._read(0, head):
            verifier.add(entry)
        return verifier.finish(head)

    def contributions(self, model_id: str, version: int | None = None) -> tuple[Origin, list[Contribution]]:
        """Answers which updates made a version of a model of yours. For actors.

        Args:
            model_id: UUID of the model.
            version: The version; None for the latest one.

        Returns:
            Where the version comes from, and the updates by round and participant.

        Raises:
            ModelNotFound: You own no such model, or it has no such version.
        """
        request = audit_pb2.GetContributionsRequest(model_id=model_id, version=version)
        found: list[Contribution] = []
        origin = Origin()
        for page in self._rpc.pages(self._rpc.audit.GetContributions, request):
            # The latest version may be another one by the next page.
            origin, request.version = page.origin, page.origin.version
            found += page.contributions
        return origin, found

    def _read(self, after: int, head: AuditHead) -> Iterator[AuditEntry]:
        stream: Stream[audit_pb2.ReadAuditResponse] | None = None
        try:
            while after < head.sequence:
                message = None
                # Nothing is yielded within an attempt: it would take the end of the generator for a failure.
                for attempt in self._rpc.retrying(ATTEMPTS):
                    with attempt, self._rpc.typed_errors():
                        if stream is None:
                            request = audit_pb2.ReadAuditRequest(after_sequence=after)
                            stream = self._rpc.open(self._rpc.audit.ReadAudit, request)
                        try:
                            message = next(stream, None)
                        except grpc.RpcError:
                            stream = None
                            raise
                if message is None:
                    # The server says that there are more, and has none: for `verify_audit` to tell.
                    return
                for entry in message.entries:
                    if entry.sequence > head.sequence:
                        return
                    yield AuditEntry.from_message(entry)
                    after = entry.sequence
        finally:
            if stream is not None:
                stream.cancel()


def _head(message: audit_pb2.AuditHead) -> AuditHead:
    return AuditHead(message.sequence, message.hash)
