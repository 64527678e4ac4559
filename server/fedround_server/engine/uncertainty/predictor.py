"""What an uncertainty method is, and its input."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.engine.format.versions import open_version
from fedround_server.engine.jobs import PredictionFault


@dataclass(frozen=True, slots=True)
class Predictor:
    """A network with its weights, in eval mode, and its inputs.

    Attributes:
        network: The operator's architecture with the first model's weights.
        inputs: Preprocessed, shape (inputs, ...).
        files: Where models and posterior are.
        models: All models that vote, the one in the network first.
        posterior: The SWAG posterior.
        options: The method's options.
        generator: The source of random numbers.
    """

    network: nn.Module
    inputs: Tensor
    files: BlobFiles
    models: tuple[VersionFile, ...]
    posterior: BlobRef | None
    options: Mapping[str, Any]
    generator: torch.Generator

    def run(self) -> Tensor:
        """Runs one pass.

        Raises:
            PredictionFault: The network does not take the inputs, or does not return a tensor with one row per input.
        """
        with blaming("inputs", "the network does not take these inputs"):
            # A network may modify its input.
            output = self.network(self.inputs.clone())
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != len(self.inputs):
            raise PredictionFault("architecture", "the network must return one tensor with a row for each input")
        if self.options.get("softmax") and output.ndim == 1:
            raise PredictionFault("architecture", "the network returns one number an input, no classes for softmax")
        return output


class Method(Protocol):
    """An uncertainty method."""

    def __call__(self, predictor: Predictor, /) -> Iterator[Tensor]:
        """Yields the outputs of one pass after the other, each of shape (inputs, ...).

        Raises:
            PredictionFault: The model lacks what the method needs.
        """


def load_weights(network: nn.Module, files: BlobFiles, model: VersionFile) -> None:
    """Loads the weights of a model into a network.

    Raises:
        PredictionFault: They do not fit.
        BlobDamaged: The file of the model is not what was stored.
    """
    with open_version(files, model) as file:
        state = {name: file.tensor(name) for name in file.layout.manifest}
    with blaming("weights", "the model does not fit the architecture"):
        network.load_state_dict(state)


@contextmanager
def bounded() -> Iterator[None]:
    """Reports errors of the block that mean that memory ran out.

    Raises:
        PredictionFault: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no exception class for the CPU's memory.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise PredictionFault("memory", "the prediction needs more memory than the operator allows") from error
        raise


@contextmanager
def blaming(fault: str, what: str) -> Iterator[None]:
    """Reports any error of the operator's code, which may raise what another process cannot unpickle.

    Args:
        fault: What has to be corrected, unless memory ran out.
        what: What an error in the block means.

    Raises:
        PredictionFault: The block failed.
    """
    try:
        with bounded():
            yield
    except PredictionFault:
        raise
    except (Exception, SystemExit) as error:
        raise PredictionFault(fault, f"{what}: {str(error) or type(error).__name__}") from error
