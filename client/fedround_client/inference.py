"""Predictions of stored models, made on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedround.v1.aggregation_pb2 import Uncertainty
from fedround.v1.inference_pb2 import PredictRequest, Tensor
from fedround_client import options
from fedround_client.options import UncertaintyChoice
from fedround_client.rpc import Rpc
from fedround_client.tensors import TensorError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

INPUT_LIMIT = 15 * 2**17
"""What inputs may take, in bytes: a message has 2 MiB."""

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model predicted. The first dimension of the arrays, all float32, counts the inputs.

    Attributes:
        model_id: UUID of the model.
        model_version: The version that predicted.
        samples: How many passes the prediction is made of.
        uncertainty: What was done, with the defaults filled in.
        mean: Mean of the passes; with softmax, probabilities.
        variance: Variance over the passes; None with one pass.
        std: Its square root; None with one pass.
        predictive_entropy: Entropy of the mean over the last dimension, in nats; None without softmax.
        expected_entropy: Mean of the passes' entropies, what is uncertain in the data; None without softmax.
        mutual_information: The difference of the two, what is uncertain in the model; None without softmax.
    """

    model_id: str
    model_version: int
    samples: int
    uncertainty: Uncertainty
    mean: Array
    variance: Array | None
    std: Array | None
    predictive_entropy: Array | None
    expected_entropy: Array | None
    mutual_information: Array | None


class InferenceCalls:
    """The calls of InferenceService."""

    _rpc: Rpc

    def predict(
        self,
        model_id: str,
        inputs: Array,
        *,
        version: int | None = None,
        tag: str = "",
        architecture: str = "",
        uncertainty: UncertaintyChoice | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """Predicts on the server with a stored model.

        Args:
            model_id: UUID of a model of yours, or of a training that you take part in.
            inputs: Inputs along the first dimension, at most 1.9 MB; their outputs must fit into a message, too.
            version: Number of updates of the global model so far; None for the latest one.
            tag: The version that carries this tag instead, such as "best".
            architecture: A name that the operator registered; by default the one that the model names.
            uncertainty: McDropout(...), Swag(...), Ensemble(...) or NoUncertainty(); by default as the model's training
                says, or none.
            seed: Makes what is drawn at random reproducible; None draws anew each time.
            timeout: Seconds; None leaves it to the server, which has a limit of its own.

        Raises:
            TensorError: The inputs have a dtype that the server does not take, or are too large.
            ModelNotFound: You have no such model, or it has no such version.
            ArchitectureUnknown: The operator registered no architecture for it.
            PosteriorMissing: The version has no SWAG posterior.
            PredictionFailed: Model, architecture and method do not fit together.
            PredictionLimit: It takes more time or memory than the operator allows, or too many wait.
            FieldInvalid: The architecture does not take these inputs.
        """
        request = PredictRequest(
            model_id=model_id,
            version=version,
            tag=tag,
            inputs=_tensor(inputs),
            uncertainty=options.uncertainty(uncertainty),
            seed=seed,
            architecture=architecture,
        )
        found = self._rpc.unary(self._rpc.inference.Predict, request, timeout)
        several, softmax = found.HasField("variance"), found.HasField("predictive_entropy")
        return Prediction(
            model_id=found.model.model_id,
            model_version=found.model.version,
            samples=found.samples,
            uncertainty=found.uncertainty,
            mean=_array(found.mean),
            variance=_array(found.variance) if several else None,
            std=_array(found.std) if several else None,
            predictive_entropy=_array(found.predictive_entropy) if softmax else None,
            expected_entropy=_array(found.expected_entropy) if softmax else None,
            mutual_information=_array(found.mutual_information) if softmax else None,
        )


def _tensor(inputs: Array) -> Tensor:
    array = np.asarray(inputs)
    if array.dtype.name not in _DTYPES:
        raise TensorError(f"The inputs have the dtype {array.dtype}; they may have {', '.join(_DTYPES)}.")
    if array.nbytes > INPUT_LIMIT:
        raise TensorError(f"The inputs take {array.nbytes} bytes; predict at most {INPUT_LIMIT} at once.")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(dtype=_DTYPES[array.dtype.name], shape=array.shape, data=little.tobytes())


def _array(tensor: Tensor) -> Array:
    return np.frombuffer(tensor.data, np.dtype("<f4")).reshape(tuple(tensor.shape)).astype(np.float32)
