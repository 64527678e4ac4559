"""Predicts, and measures the spread of an uncertainty method's passes."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import Dtype
from fedround_server.domain.prediction import Array, Prediction
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.jobs import PredictionFault, PredictionJob
from fedround_server.engine.uncertainty import METHODS, Predictor
from fedround_server.engine.uncertainty.predictor import blaming, bounded, load_weights


@torch.no_grad()
@bounded()
def predict(files: BlobFiles, job: PredictionJob) -> Prediction:
    """Predicts outputs for inputs.

    Raises:
        PredictionFault: The inputs, the weights and the architecture do not fit, or memory ran out.
        BlobDamaged: A model or the posterior is not what was stored.
    """
    generator = torch.Generator()
    if job.seed is None:
        generator.seed()
    else:
        generator.manual_seed(job.seed)
    # Dropout uses the global generator only.
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    network = build_architecture(job.architecture)
    load_weights(network, files, job.models[0])
    inputs = _inputs(network, job.inputs)
    predictor = Predictor(network, inputs, files, job.models, job.posterior, job.options, generator)
    return summarise(METHODS[job.method](predictor), softmax=bool(job.options.get("softmax", False)))


def build_architecture(architecture: str) -> nn.Module:
    """Imports the operator's factory, and builds a network in eval mode.

    Args:
        architecture: As package.module:callable; modules in the folder where the server was started are found too.

    Raises:
        PredictionFault: The factory cannot be imported, or does not make a network.
    """
    module_name, _, name = architecture.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    with blaming("architecture", f"{architecture} cannot be imported"):
        factory = getattr(importlib.import_module(module_name), name)
    if not callable(factory):
        raise PredictionFault("architecture", f"{architecture} is not callable")
    with blaming("architecture", "the factory failed"):
        network = factory()
    if not isinstance(network, nn.Module):
        raise PredictionFault("architecture", f"the factory made a {type(network).__name__}, no torch.nn.Module")
    return network.eval()


def _inputs(network: nn.Module, array: Array) -> Tensor:
    """Checks the inputs against the shape that the architecture declares, and preprocesses them."""
    tensor = torch.frombuffer(bytearray(array.data), dtype=TORCH_DTYPES[array.dtype]).reshape(array.shape)
    wanted = getattr(network, "input_shape", None)
    if wanted is not None and tuple(array.shape[1:]) != tuple(wanted):
        raise PredictionFault(
            "inputs", f"the shape is {list(array.shape)}, the architecture takes [N, {', '.join(map(str, wanted))}]"
        )
    preprocess: Any = getattr(network, "preprocess", None)
    if preprocess is None:
        return tensor
    with blaming("inputs", "the preprocessing does not take these inputs"):
        prepared = preprocess(tensor)
    if not isinstance(prepared, Tensor) or prepared.ndim == 0 or len(prepared) != len(tensor):
        raise PredictionFault("architecture", "the preprocessing must return one tensor with a row for each input")
    return prepared


def summarise(passes: Iterator[Tensor], *, softmax: bool) -> Prediction:
    """Summarises passes one by one, in float64, without storing them (Welford, Technometrics 1962).

    Args:
        passes: Outputs of the same shape (inputs, ...), at least one.
        softmax: Whether they are logits over the last dimension.
    """
    mean, squares, entropy = torch.zeros(()), torch.zeros(()), torch.zeros(())
    count = 0
    for output in passes:
        value = output.to(torch.float64)
        if softmax:
            value = value.softmax(-1)
            entropy = entropy + _entropy(value)
        count += 1
        delta = value - mean
        mean = mean + delta / count
        squares = squares + delta * (value - mean)
    variance = squares / count
    entropies = None
    if softmax:
        predictive, expected = _entropy(mean), entropy / count
        entropies = (_array(predictive), _array(expected), _array(predictive - expected))
    spread = (_array(variance), _array(variance.sqrt())) if count > 1 else None
    return Prediction(_array(mean), spread, entropies, count)


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy


def _array(tensor: Tensor) -> Array:
    data = tensor.to(torch.float32).contiguous().numpy().astype(np.dtype("<f4"), copy=False).tobytes()
    return Array(Dtype.F32, tuple(tensor.shape), data)
