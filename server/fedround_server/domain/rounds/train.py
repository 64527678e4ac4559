"""Rounds in which participants train the model; their updates make its next version."""

from fedround_server.domain.aggregation import DaisyChaining
from fedround_server.domain.model import Manifest
from fedround_server.domain.rounds.kind import (
    Computation,
    ExpectedTensors,
    NewVersion,
    RoundKind,
    RoundRequest,
    Sequel,
)
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
        """Checks that the selection of tensors and their precisions fit the model."""
        spec.tensors.check(model)
        if not isinstance(spec.aggregation.rule, DaisyChaining):
            spec.transport.check(spec.tensors.trained(model))

    def request(self, spec: TrainingSpec, step: int) -> RoundRequest:
        """Returns the precisions of updates."""
        return RoundRequest(transport=spec.transport)

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        """Returns the tensors of the model that are trained, or differences from them."""
        trained = spec.tensors.trained(model)
        encoded = spec.transport.encoded(trained)
        return ExpectedTensors(
            trained,
            None if encoded == trained else encoded,
            spec.transport.block_sizes(trained),
            private=spec.tensors.private_names(model),
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
        )

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> NewVersion:
        """Returns that the file is the next version."""
        return NewVersion()
