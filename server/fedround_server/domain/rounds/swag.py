"""Rounds that collect moments of the weights, and make a SWAG posterior (Maddox et al., NeurIPS 2019)."""

from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import MAX_TENSORS, POSTERIOR, Manifest
from fedround_server.domain.rounds.kind import Computation, ExpectedTensors, NewArtifact, RoundKind, RoundRequest
from fedround_server.domain.swag_moments import MEAN, SwagMoments, moments
from fedround_server.domain.training import TrainingSpec, TrainingState
from fedround_server.domain.uncertainty import Swag


class CollectMoments(RoundKind):
    """A round that collects moments."""

    name = "SWAG"
    public_name = "SWAG"
    training_state = TrainingState.SWAG_ROUND

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        """Returns whether moments are collected around a version."""
        method = spec.uncertainty
        return isinstance(method, Swag) and (last or (method.every > 0 and model_version % method.every == 0))

    def check(self, spec: TrainingSpec, model: Manifest) -> None:
        """Checks that the model has tensors to collect moments of, and not too many."""
        if not isinstance(spec.uncertainty, Swag):
            return
        count = len(moments(model, spec.uncertainty.rank))
        if count == 0:
            raise FieldInvalid(
                "spec.uncertainty.swag", "wants a model with floating tensors: there is none in this one"
            )
        if count > MAX_TENSORS:
            raise FieldInvalid(
                "spec.uncertainty.swag.rank",
                f"makes {count} tensors of moments, and a file may have {MAX_TENSORS}: choose a lower one",
            )

    def request(self, spec: TrainingSpec, step: int) -> RoundRequest:
        """Returns the options of SWAG."""
        return RoundRequest(swag=_method(spec))

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        """Returns the moments of the model's floating tensors."""
        return ExpectedTensors(moments(model, _method(spec).rank), prefix=f"{MEAN}/")

    def computation(self, spec: TrainingSpec, step: int) -> Computation:
        """Returns the aggregation of moments."""
        return Computation(SwagMoments())

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> NewArtifact:
        """Returns that the file is the version's posterior: its rank is that of all participants together."""
        return NewArtifact(POSTERIOR, {"rank": _method(spec).rank * num_updates})


def _method(spec: TrainingSpec) -> Swag:
    if not isinstance(spec.uncertainty, Swag):
        raise TypeError(f"a SWAG round in a training with uncertainty {spec.uncertainty.name}")
    return spec.uncertainty
