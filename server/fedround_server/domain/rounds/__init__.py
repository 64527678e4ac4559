"""The kinds of rounds by name: to add one, write its file here and its line below."""

from fedround_server.domain.model import Manifest
from fedround_server.domain.rounds.chained import Chained
from fedround_server.domain.rounds.evaluate import Evaluate
from fedround_server.domain.rounds.kind import RoundKind, Sequel
from fedround_server.domain.rounds.swag import CollectMoments
from fedround_server.domain.rounds.train import Train
from fedround_server.domain.training import TrainingSpec

# Kinds that are due at the same version follow each other in this order.
KINDS: dict[str, RoundKind] = {kind.name: kind for kind in (Train(), Chained(), Evaluate(), CollectMoments())}


def check_model(spec: TrainingSpec, model: Manifest) -> None:
    """Checks that a training can have its rounds with a model.

    Raises:
        FieldInvalid: It cannot.
    """
    for kind in KINDS.values():
        kind.check(spec, model)


def next_kind(spec: TrainingSpec, name: str | None, model_version: int, *, stop: bool = False) -> RoundKind | None:
    """Returns the kind of the round that follows, or None when the training is complete.

    What is due at the present version comes first, then the next version.

    Args:
        spec: What to train.
        name: The kind of the round that is done; None before the first round.
        model_version: The model's version after that round.
        stop: Whether the training makes no more versions, although its target is not reached.
    """
    last = stop or model_version >= spec.target_num_updates
    names = list(KINDS)
    # The version that a training starts from is evaluated only if it makes no others.
    later = names[names.index(name) + 1 :] if name is not None else [] if spec.target_num_updates else names
    here = [kind for kind in map(KINDS.get, later) if kind is not None and kind.sequel is Sequel.PRESENT_VERSION]
    makers = [kind for kind in KINDS.values() if kind.sequel is Sequel.NEXT_VERSION]
    return next((kind for kind in [*here, *makers] if kind.is_due(spec, model_version, last=last)), None)
