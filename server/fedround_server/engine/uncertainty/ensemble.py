"""Deep ensembles (Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation, NeurIPS 2017)."""

from collections.abc import Iterator

from torch import Tensor

from fedround_server.engine.uncertainty.predictor import Predictor, load_weights


def ensemble(predictor: Predictor, /) -> Iterator[Tensor]:
    """Runs one pass with each model.

    Raises:
        PredictionFault: A model does not fit the architecture.
    """
    for model in predictor.models:
        load_weights(predictor.network, predictor.files, model)
        yield predictor.run()
