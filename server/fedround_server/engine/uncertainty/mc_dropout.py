"""Monte Carlo dropout (Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016)."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from fedround_server.engine.jobs import PredictionFault
from fedround_server.engine.uncertainty.predictor import Predictor


def mc_dropout(predictor: Predictor, /) -> Iterator[Tensor]:
    """Runs passes with dropout enabled; everything else, such as batch normalisation, stays in eval mode.

    Raises:
        PredictionFault: The network has no dropout.
    """
    dropouts = [module for module in predictor.network.modules() if isinstance(module, _DropoutNd)]
    if not any(module.p > 0 for module in dropouts):
        raise PredictionFault("dropout", "the architecture has no dropout, so every pass would be the same")
    for module in dropouts:
        module.train()
    for _ in range(predictor.options["samples"]):
        yield predictor.run()
