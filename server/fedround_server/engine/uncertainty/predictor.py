"""What uncertainty methods are, and what they get."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedround_server.engine.job import PredictionFailed
from fedround_server.engine.tensors import TensorFile


@dataclass(frozen=True, slots=True)
class Predictor:
    """A network with its weights, in eval mode, and its inputs.

    Attributes:
        network: The operator's architecture with the first model's weights.
        inputs: Preprocessed, shape (inputs, ...).
        models: The files of all models that vote, the network's first.
        posterior: The file of the SWAG posterior.
        options: The method's options.
        generator: Where random numbers come from.
    """

    network: nn.Module
    inputs: Tensor
    models: tuple[Path, ...]
    posterior: Path | None
    options: Mapping[str, Any]
    generator: torch.Generator

    def run(self) -> Tensor:
        """Makes one pass.

        Raises:
            PredictionFailed: The network does not take the inputs, or gives no tensor with one row an input.
        """
        try:
            output = self.network(self.inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise PredictionFailed("inputs", f"the network does not take these inputs: {error}") from error
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != len(self.inputs):
            raise PredictionFailed("architecture", "the network must return one tensor with a row for each input")
        return output


class Method(Protocol):
    """An uncertainty method."""

    def __call__(self, predictor: Predictor, /) -> Iterator[Tensor]:
        """Yields the outputs of one pass after the other, each of shape (inputs, ...).

        Raises:
            PredictionFailed: The model is not what the method needs.
        """


def read(file: TensorFile, name: str) -> Tensor:
    """Returns a whole tensor of a file, as a copy."""
    spec = file.layout.manifest[name]
    return file.block(name, 0, spec.num_elements).clone().reshape(spec.shape)


def load_weights(network: nn.Module, path: Path) -> None:
    """Gives a network the weights of a model.

    Raises:
        PredictionFailed: They do not fit.
    """
    with TensorFile(path) as file:
        state = {name: read(file, name) for name in file.layout.manifest}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise PredictionFailed("weights", f"the model does not fit the architecture: {error}") from error


def build(factory: Callable[[], object]) -> nn.Module:
    """Builds a network in eval mode.

    Raises:
        PredictionFailed: The factory makes none.
    """
    try:
        network = factory()
    except Exception as error:
        raise PredictionFailed("architecture", f"the factory failed: {error}") from error
    if not isinstance(network, nn.Module):
        raise PredictionFailed("architecture", f"the factory made a {type(network).__name__}, no torch.nn.Module")
    return network.eval()


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means that memory ran out; torch has no class of its own for the CPU."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
