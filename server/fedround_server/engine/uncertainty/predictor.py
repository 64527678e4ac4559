"""What uncertainty methods are, and what they get."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.jobs import PredictionFailed


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
        with blaming("inputs", "the network does not take these inputs"):
            # A network may work in place.
            output = self.network(self.inputs.clone())
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != len(self.inputs):
            raise PredictionFailed("architecture", "the network must return one tensor with a row for each input")
        if self.options.get("softmax") and output.ndim == 1:
            raise PredictionFailed("architecture", "the network returns one number an input, no classes for softmax")
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
    with blaming("weights", "the model does not fit the architecture"):
        network.load_state_dict(state)


def build(factory: Callable[[], object]) -> nn.Module:
    """Builds a network in eval mode.

    Raises:
        PredictionFailed: The factory makes none.
    """
    with blaming("architecture", "the factory failed"):
        network = factory()
    if not isinstance(network, nn.Module):
        raise PredictionFailed("architecture", f"the factory made a {type(network).__name__}, no torch.nn.Module")
    return network.eval()


@contextmanager
def bounded() -> Iterator[None]:
    """Runs what may need more memory than there is.

    Raises:
        PredictionFailed: It did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for a CPU without memory.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise PredictionFailed("memory", "the prediction needs more memory than the operator allows") from error
        raise


@contextmanager
def blaming(fault: str, what: str) -> Iterator[None]:
    """Runs code of the operator's, which may raise anything, even what no other process can read.

    Args:
        fault: What has to be mended, unless memory ran out.
        what: What an error in the block means.

    Raises:
        PredictionFailed: The block failed.
    """
    try:
        with bounded():
            yield
    except PredictionFailed:
        raise
    except (Exception, SystemExit) as error:
        raise PredictionFailed(fault, f"{what}: {str(error) or type(error).__name__}") from error
