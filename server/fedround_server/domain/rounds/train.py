"""Rounds in which participants train the model; their updates make its next version."""

from dataclasses import replace
from datetime import timedelta

from fedround_server.domain.aggregation import BUFFERS, Buffering, DaisyChaining
from fedround_server.domain.control import CONTROL, check_control, control_tensors
from fedround_server.domain.model import Manifest
from fedround_server.domain.partial_sum import check_tensors
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.rounds.kind import (
    Computation,
    ExpectedTensors,
    NewVersion,
    RoundKind,
    RoundRequest,
    Sequel,
)
from fedround_server.domain.tensor_selection import check_globs
from fedround_server.domain.training import TrainingSpec


class Train(RoundKind):
    """A round of training."""

    name = "TRAIN"
    public_name = "TRAIN"
    sequel = Sequel.NEXT_VERSION

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        """Returns whether another version is to be made, without daisy chaining."""
        return not last and not isinstance(spec.aggregation.rule, DaisyChaining)

    def check(self, spec: TrainingSpec, model: Manifest) -> None:
        """Checks that the selection of tensors, their precisions and the aggregation fit the model."""
        spec.tensors.check(model)
        fields = {"spec.aggregation": spec.aggregation}
        fields |= {f"spec.aggregation.shadow[{number}]": one for number, one in enumerate(spec.aggregation.shadows)}
        for field, stages in fields.items():
            stages.rule.check_model(model, spec.tensors)
            if stages.buffers != BUFFERS:
                check_globs(f"{field}.buffers", stages.buffers, spec.tensors.trained(model))
        if not isinstance(spec.aggregation.rule, DaisyChaining):
            spec.transport.check(spec.tensors.trained(model))
        check_control(spec.aggregation, model, spec.tensors.trained(model))
        if spec.allow_relays:
            check_tensors("spec.allow_relays", spec.tensors.trained(model))

    def request(self, spec: TrainingSpec, step: int) -> RoundRequest:
        """Returns the precisions of updates."""
        return RoundRequest(transport=spec.transport)

    def policy(self, spec: TrainingSpec) -> RoundPolicy:
        """Returns the training's policy; with buffering, so many updates close a round."""
        buffering = self.buffering(spec)
        if buffering is None:
            return spec.round_policy
        return replace(spec.round_policy, min_updates=buffering.size, wait_after_min=timedelta(0), wait_fraction=0.0)

    def buffering(self, spec: TrainingSpec) -> Buffering | None:
        """Returns the buffering of the aggregation."""
        return spec.aggregation.buffering

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        """Returns the tensors that are trained, or differences from them, and those of control variates."""
        trained = spec.tensors.trained(model)
        encoded = spec.transport.encoded(trained)
        control = control_tensors(spec.aggregation, trained)
        return ExpectedTensors(
            {**trained, **control} if control else trained,
            None if encoded == trained else {**encoded, **control},
            spec.transport.block_sizes(trained),
            private=spec.tensors.private_names(model),
            adapters=spec.aggregation.rule.adapters(model, trained).pairs,
            is_bounded=bool(spec.max_update_norm),
            beside=CONTROL if control else "",
        )

    def computation(self, spec: TrainingSpec, step: int) -> Computation:
        """Returns the training's aggregation."""
        return Computation(
            spec.aggregation,
            spec.transport,
            integers=spec.integer_tensors,
            keep_non_finite=spec.allow_non_finite_buffers,
            tensors=spec.tensors,
            cohort=spec.cohort,
            relays=spec.allow_relays,
        )

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> NewVersion:
        """Returns that the file is the next version."""
        return NewVersion()
