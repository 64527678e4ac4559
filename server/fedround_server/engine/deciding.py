"""How the updates of a round are aggregated, by the state that does not depend on the size of the model."""

from collections.abc import Mapping
from pathlib import Path

from fedround_server.aggregators.clipping import AdaptiveClipping, Clipping
from fedround_server.aggregators.rule import Updates
from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.model import BlobRef
from fedround_server.engine.decision import Decision, decide
from fedround_server.engine.jobs import AggregationJob
from fedround_server.engine.private import Private, decide_privately, next_norm
from fedround_server.engine.small_slots import SmallSlots


class Deciding:
    """Decides with the norm of adaptive clipping and the secret of trees, and makes those of the next aggregation."""

    def __init__(self, files: BlobFiles, job: AggregationJob, aggregation: Aggregation) -> None:
        """Reads the state.

        Raises:
            BlobDamaged: A file is not what was stored.
        """
        self._aggregation = aggregation
        self._expected = job.expected
        self._state = SmallSlots(files, aggregation, job.state)
        clipping = aggregation.clipping
        first = clipping.first_norm() if isinstance(clipping, Clipping) else 0.0
        self._norm = first if self._state.norm is None else self._state.norm

    def decide(self, updates: Updates) -> Decision | Private | None:
        """Decides about the updates that count; None if there are none, and there is no privacy, which adds noise.

        Raises:
            NoAggregate: The rule finds no result.
        """
        if self._aggregation.differential_privacy is None:
            return decide(self._aggregation, updates, self._norm or None) if len(updates) else None
        slot = self._aggregation.key_slot
        tree = None if slot is None else (self._state.key, self._state.steps[slot])
        return decide_privately(self._aggregation, updates, self._norm, self._expected, tree)

    def finish(
        self, targets: Mapping[str, Path], decision: Decision | Private | None
    ) -> tuple[dict[str, BlobRef], dict[str, int]]:
        """Writes the state for the next aggregation.

        Args:
            targets: The paths of the files by slot; others are left out.
            decision: How the updates were aggregated; None if there were none.

        Returns:
            The files, and how many aggregations have made each of them.

        Raises:
            OSError: One could not be written.
        """
        norm, clipping = self._norm, self._aggregation.clipping
        if isinstance(clipping, AdaptiveClipping) and decision is not None and decision.scales is not None:
            privacy = self._aggregation.differential_privacy
            norm = next_norm(clipping, privacy, decision.scales, norm, self._expected)
        written = self._state.write(targets, norm)
        return written, {slot: self._state.steps[slot] + (decision is not None) for slot in written}
