"""AuditService."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict

from fedround.v1 import audit_pb2, audit_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.counterfactuals import ComputedVersion
from fedround_server.domain.audit import SERVER, AuditEntry, AuditHead, Origin
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import Model
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import aggregation, convert, fields, pages

MAX_SEQUENCE = (1 << 62) - 1


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """Reads the audit log."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._audit = coordinator.audit
        self._reads = coordinator.reads
        self._replays = coordinator.replays

    async def ReadAudit(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self, request: audit_pb2.ReadAuditRequest, context: Call
    ) -> None:
        """Streams entries, as many per message as fit."""
        after = _parse_sequence("after_sequence", request.after_sequence)
        until = _parse_sequence("until_sequence", request.until_sequence)
        chain = fields.parse_optional_id("chain", request.chain) or SERVER
        head = await self._audit.head(SERVER if request.all_chains else chain)
        await context.write(audit_pb2.ReadAuditResponse(head=_head(head)))
        # A stream that was cut ends where it should have ended.
        until = min(until or head.sequence, head.sequence)
        if chain == head.chain:
            async for batch in self._audit.read(chain, after, until):
                await _write(context, batch)
        if request.all_chains:
            async for page in self._audit.read_trainings(chain, after, until):
                await _write(context, page.items)

    async def GetAuditHead(
        self, request: audit_pb2.GetAuditHeadRequest, context: Call
    ) -> audit_pb2.GetAuditHeadResponse:
        """Returns the sequence and hash of the last entry of the server's chain, behind the heads of all others."""
        return audit_pb2.GetAuditHeadResponse(head=_head(await self._audit.record_heads()))

    async def GetContributions(
        self, request: audit_pb2.GetContributionsRequest, context: Call
    ) -> audit_pb2.GetContributionsResponse:
        """Lists the updates that a version was aggregated from."""
        size = pages.parse_size(request.page_size)
        position = pages.parse_token(request.page_token, int)
        start = max(position[0], 0) if position else 0
        version = request.version if request.HasField("version") else None
        model_id = fields.parse_id("model_id", request.model_id)
        origin = await self._reads.origin(model_id, version, await self._reads.reader_of_model(caller(), model_id))
        found = list(enumerate(origin.contributions, 1))[start : start + size + 1]
        page, token = pages.cut(
            found, size, lambda one: audit_pb2.Contribution(**asdict(one[1])), lambda one: pages.format_token(one[0])
        )
        return audit_pb2.GetContributionsResponse(origin=_origin(origin), contributions=page, next_page_token=token)

    async def ReplayRound(self, request: audit_pb2.ReplayRoundRequest, context: Call) -> audit_pb2.ReplayRoundResponse:
        """Computes the version that a round has made once more."""
        training_id = fields.parse_id("training_id", request.training_id)
        without = fields.parse_optional_ids("without_client_ids", request.without_client_ids)
        found = await self._replays.replay(training_id, request.round, without, caller().user_id)
        return audit_pb2.ReplayRoundResponse(
            model_version=found.made.version,
            recorded_sha256=found.made.blob.sha256,
            replayed_sha256=found.replay.sha256,
            num_updates=found.num_updates,
            distance=found.replay.distance,
        )

    async def ReplayTraining(  # type: ignore[override]  # a coroutine that writes has no generator lifetime
        self, request: audit_pb2.ReplayTrainingRequest, context: Call
    ) -> None:
        """Computes what the rounds of a training would have made without some participants."""
        training_id = fields.parse_id("training_id", request.training_id)
        without = fields.parse_optional_ids("without_client_ids", request.without_client_ids)
        name = fields.parse_text("model_name", request.model_name, 200)
        request_id = fields.parse_optional_id("request_id", request.request_id)
        actor_id = caller().user_id
        branch = self._replays.counterfactuals.replay(training_id, without, name, request_id, actor_id)
        async with aclosing(branch) as found:
            async for one in found:
                await context.write(_branch(one))


def _branch(found: ComputedVersion | Model) -> audit_pb2.ReplayTrainingResponse:
    if isinstance(found, Model):
        return audit_pb2.ReplayTrainingResponse(model_id=found.model_id)
    made = found.version
    return audit_pb2.ReplayTrainingResponse(
        round=made.round,
        model_version=found.number,
        num_updates=made.num_updates,
        sha256=made.file.sha256,
        distance=found.distance,
        exact=made.is_exact,
        problem=made.problem,
    )


async def _write(context: Call, items: Sequence[AuditEntry | AuditHead]) -> None:
    while items:
        messages = pages.fitting(items, _item)
        await context.write(
            audit_pb2.ReadAuditResponse(
                entries=[one for one in messages if isinstance(one, audit_pb2.AuditEntry)],
                heads=[one for one in messages if isinstance(one, audit_pb2.AuditHead)],
            )
        )
        items = items[len(messages) :]


def _item(found: AuditEntry | AuditHead) -> audit_pb2.AuditEntry | audit_pb2.AuditHead:
    return _head(found) if isinstance(found, AuditHead) else _entry(found)


def _parse_sequence(field: str, value: int) -> int:
    if value > MAX_SEQUENCE:
        raise FieldInvalid(field, "is beyond the end of any log")
    return value


def _entry(found: AuditEntry) -> audit_pb2.AuditEntry:
    return audit_pb2.AuditEntry(**{**asdict(found), "time": convert.timestamp(found.time)})


def _head(found: AuditHead) -> audit_pb2.AuditHead:
    return audit_pb2.AuditHead(sequence=found.sequence, hash=found.hash, chain=found.chain)


def _origin(found: Origin) -> audit_pb2.Origin:
    return audit_pb2.Origin(
        model_id=found.model_id,
        version=found.version,
        sha256=found.sha256,
        create_time=convert.timestamp(found.create_time),
        sequence=found.sequence,
        chain=found.chain,
        training_id=found.training_id,
        round=found.round,
        aggregation=None if found.aggregation is None else aggregation.write(found.aggregation),
        num_examples=found.num_examples,
    )
