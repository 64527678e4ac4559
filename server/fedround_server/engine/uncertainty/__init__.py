"""The uncertainty methods by name. To add one, write its file here and its line below."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from fedround_server.engine.uncertainty.ensemble import ensemble
from fedround_server.engine.uncertainty.mc_dropout import mc_dropout
from fedround_server.engine.uncertainty.predictor import Method, Predictor
from fedround_server.engine.uncertainty.swag import swag

__all__ = ["METHODS", "Method", "Predictor"]


def none(predictor: Predictor, /) -> Iterator[Tensor]:
    """Runs one pass: a point prediction."""
    yield predictor.run()


METHODS: Mapping[str, Method] = {
    "none": none,
    "mc_dropout": mc_dropout,
    "swag": swag,
    "ensemble": ensemble,
}
