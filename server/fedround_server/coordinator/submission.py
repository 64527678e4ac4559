"""Use cases of participants: submitting an update or a report to a round."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import partial

from fedround_server.coordinator.admissions import Terms
from fedround_server.coordinator.aggregation import Aggregations
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.next_rounds import NextRounds
from fedround_server.coordinator.uploads.receive import Incoming, Received, Uploads
from fedround_server.domain.errors import (
    DataLoss,
    InvalidArgument,
    NotInCohort,
    ResourceExhausted,
    RoundNotOpen,
    UpdateExists,
    UpdateStale,
    UpdateSuperseded,
)
from fedround_server.domain.model import BlobRef, Manifest
from fedround_server.domain.partial_sum import check_num_updates
from fedround_server.domain.report import NewReport
from fedround_server.domain.update import MetricValue, NewUpdate, Update
from fedround_server.engine.jobs import SumCheck
from fedround_server.failpoints import reached
from fedround_server.wakeups import for_actor


class Submissions:
    """Accepts updates and reports, and starts the aggregation of the rounds that they close."""

    def __init__(self, context: Context, uploads: Uploads, aggregations: Aggregations, next_rounds: NextRounds) -> None:
        self._context = context
        self._next_rounds = next_rounds
        self._store = context.store.submissions
        self._uploads = uploads
        self._aggregations = aggregations
        self._admissions = context.admissions
        self._asked: dict[tuple[str, int], asyncio.Event] = {}

    async def submit(
        self,
        training_id: str,
        number: int,
        num_examples: int,
        metrics: Mapping[str, MetricValue],
        incoming: Incoming,
        *,
        local_steps: int | None = None,
        initial_loss: float | None = None,
        base_version: int | None = None,
        num_updates: int = 0,
    ) -> Update:
        """Accepts an update. When it returns, the update is on disk and will be counted exactly once.

        With buffering, it waits for the next round if none is open.

        Raises:
            FedroundError: The update is rejected, as described for `SubmissionVerbs.admit` and `Uploads.receive`.
        """
        blob = BlobRef(str(incoming.sha256), int(incoming.size_bytes or 0))
        new = NewUpdate(
            training_id,
            number,
            incoming.user_id,
            blob,
            num_examples,
            metrics,
            local_steps,
            initial_loss,
            base_version,
            num_updates,
        )
        # A large file is not received for nothing.
        known = await self._find_terms(new) if incoming.is_small and not incoming.offset else None
        if known is None:
            terms = await self._admit(new, incoming)
            return terms if isinstance(terms, Update) else await self._receive(new, incoming, terms)
        try:
            return await self._receive(new, incoming, known)
        except (InvalidArgument, DataLoss, ResourceExhausted):
            # What is wrong with the file, or that there is no room, matters only if the update would be accepted.
            terms = await self._admit(new, incoming)
            if isinstance(terms, Update):
                return terms
            raise

    async def _find_terms(self, new: NewUpdate) -> Terms | None:
        """Returns what an update must be; None if the database is to be asked.

        When a round begins, many updates arrive at once: the others wait for the answer to the first one.
        """
        asked = self._asked.get((new.training_id, new.round))
        if asked is not None and self._admissions.shares_terms(new):
            await asked.wait()
        return self._admissions.find(new)

    async def _admit(self, new: NewUpdate, incoming: Incoming) -> Terms | Update:
        """Returns what an update must be, as the database says; or the same update, if it was accepted before."""
        try:
            return await self._ask(new)
        except (RoundNotOpen, NotInCohort, UpdateExists, UpdateStale, UpdateSuperseded):
            # The remains of an earlier attempt would count against the user's limit for a day.
            await self._uploads.abandon(incoming.user_id, incoming.upload_id)
            raise

    async def _ask(self, new: NewUpdate) -> Terms | Update:
        key, answered = (new.training_id, new.round), asyncio.Event()
        is_first = self._asked.setdefault(key, answered) is answered
        try:
            admission = await self._store.admit(new)
            return admission if isinstance(admission, Update) else self._admissions.add(new, admission)
        finally:
            answered.set()
            if is_first:
                del self._asked[key]

    async def _receive(self, new: NewUpdate, incoming: Incoming, terms: Terms) -> Update:
        admission = terms.admission

        async def accept(received: Received) -> tuple[Update, bool]:
            # The file is also that of the same update that was accepted meanwhile.
            return await self._accept_update(replace(new, blob=received.blob)), True

        # A relay bounds the distances of single updates, and what it sends in places where the model is not finite does
        # not count.
        update = await self._uploads.receive(
            incoming if incoming.round == admission.round else replace(incoming, round=admission.round),
            terms.check_sum if new.is_sum else terms.check,
            accept,
            None if new.is_sum else admission.bound,
            model=None if new.is_sum else admission.model,
            expected=admission.tensors,
            check_metadata=partial(check_num_updates, new.num_updates) if new.is_sum else None,
            sums=_sum_check(new, admission.tensors.manifest) if new.is_sum and new.num_examples else None,
        )
        reached("update.replying")
        return update

    async def submit_metrics(
        self, training_id: str, number: int, user_id: str, num_examples: int, metrics: Mapping[str, MetricValue]
    ) -> None:
        """Accepts a report of an evaluation round.

        Raises:
            FedroundError: The report is rejected, as described for `SubmissionVerbs.submit_report`.
        """
        new = NewReport(training_id, number, user_id, num_examples, metrics)
        await self._context.tasks.run_shielded(self._accept_report(new))

    async def _accept_update(self, new: NewUpdate) -> Update:
        update_id = self._context.new_id()

        def submit() -> Awaitable[tuple[Update, bool]]:
            return self._store.submit_update(update_id, new, self._context.clock.now())

        with self._context.traces.span("commit"):
            update, closed = await self._next_rounds.when_open(new.training_id, new.user_id, submit)
        # The same update may have been accepted meanwhile.
        self._context.counters.updates_accepted += update.update_id == update_id
        self._context.traces.keep(update.update_id)
        with self._context.traces.span("wake"):
            self._accepted(new.training_id, closed=closed)
        return update

    async def _accept_report(self, new: NewReport) -> None:
        report_id = self._context.new_id()
        if not self._admissions.knows(new.training_id, new.user_id):
            # Others that report wait for each other: how long that takes must not tell who has no part in it of them.
            await self._store.check_part(new.training_id, new.user_id)
            self._admissions.know(new.training_id, new.user_id)
        with self._context.traces.span("commit"):
            report, closed = await self._store.submit_report(report_id, new, self._context.clock.now())
        self._context.counters.reports_accepted += report.report_id == report_id
        self._accepted(new.training_id, closed=closed)

    def _accepted(self, training_id: str, *, closed: bool) -> None:
        reached("update.accepted")
        self._context.hub.notify(for_actor(training_id))
        if closed:
            self._aggregations.start(training_id)


def _sum_check(new: NewUpdate, tensors: Manifest) -> SumCheck:
    dtypes = {name: spec.dtype for name, spec in tensors.items() if spec.dtype.is_floating}
    return SumCheck(dtypes, new.num_examples)
