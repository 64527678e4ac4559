"""SWAG (Maddox et al., A Simple Baseline for Bayesian Uncertainty in Deep Learning, NeurIPS 2019)."""

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from fedround_server.domain.swag_moments import DEVIATION, MEAN, SECOND, columns
from fedround_server.engine.format.tensors import TensorFile, open_blob
from fedround_server.engine.jobs import PredictionFault
from fedround_server.engine.uncertainty.predictor import Predictor


def swag(predictor: Predictor, /) -> Iterator[Tensor]:
    """Runs passes with weights drawn from the posterior; buffers, such as batch statistics, keep the model's values.

    Raises:
        PredictionFault: The posterior lacks weights of the network.
    """
    if predictor.posterior is None:
        raise PredictionFault("weights", "there is no posterior")
    parameters = dict(predictor.network.named_parameters())
    with open_blob(predictor.files, predictor.posterior) as file:
        if missing := sorted(name for name in parameters if f"{MEAN}/{name}" not in file.layout.manifest):
            raise PredictionFault("weights", f"the posterior lacks {missing[0]!r}, a weight of the architecture")
        for _ in range(predictor.options["samples"]):
            for name, value in draw(file, sorted(parameters), predictor.generator).items():
                parameters[name].data.copy_(value)
            yield predictor.run()


def draw(file: TensorFile, names: list[str], generator: torch.Generator) -> dict[str, Tensor]:
    """Draws weights from a posterior: float64 tensors by name.

    Each is mean + sigma * z for a diagonal posterior; with deviations, each part has half of the variance.
    """
    rank = columns(file.layout.manifest)
    # One factor per column for the whole network: this makes weights correlate.
    factors = torch.randn(rank, generator=generator, dtype=torch.float64).tolist()
    drawn = {}
    for name in names:
        mean, second = file.tensor(f"{MEAN}/{name}"), file.tensor(f"{SECOND}/{name}")
        sigma = (second - mean.square()).clamp(min=0).sqrt()
        noise = sigma * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        for column, factor in enumerate(factors):
            noise.view(-1).add_(file.block(f"{DEVIATION}/{column}/{name}", 0, noise.numel()), alpha=factor)
        drawn[name] = mean + (noise / sqrt(2) if rank else noise)
    return drawn
