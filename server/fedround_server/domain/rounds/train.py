"""Rounds in which participants train the model; their updates make its next version."""

from fedround_server.domain.aggregation import DaisyChaining
from fedround_server.domain.model import Manifest, differences
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
        """Checks that the selection of tensors fits the model."""
        spec.tensors.check(model)

    def request(self, spec: TrainingSpec, step: int) -> RoundRequest:
        """Returns the precision of updates."""
        return RoundRequest(update_precision=spec.update_precision)

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        """Returns the tensors of the model that are trained, or differences from them in half precision."""
        half = spec.update_precision.dtype
        trained = spec.tensors.trained(model)
        private = spec.tensors.private_names(model)
        return ExpectedTensors(trained, None if half is None else differences(trained, half), private=private)

    def computation(self, spec: TrainingSpec, step: int) -> Computation:
        """Returns the training's aggregation."""
        return Computation(
            spec.aggregation,
            spec.update_precision.dtype,
            integers=spec.integer_tensors,
            keep_non_finite=spec.allow_non_finite_buffers,
            tensors=spec.tensors,
        )

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> NewVersion:
        """Returns that the file is the next version."""
        return NewVersion()
