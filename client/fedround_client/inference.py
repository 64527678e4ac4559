"""The calls of InferenceService: predictions with stored models, computed on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import numpy as np

from fedround.v1.aggregation_pb2 import Uncertainty
from fedround.v1.inference_pb2 import PredictRequest, Tensor
from fedround_client import options
from fedround_client.errors import ResponseInvalid
from fedround_client.options import UncertaintyOption
from fedround_client.rpc import Rpc
from fedround_client.tensor_types import TensorError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

INPUT_LIMIT = 15 * 2**17
"""Largest inputs in bytes: a message may have 2 MiB."""

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
    """The prediction of a model. All arrays are float32; their first dimension is the input.

    Attributes:
        model_id: UUID of the model.
        model_version: Version of the model.
        samples: Number of forward passes.
        uncertainty: The method and its options, with the defaults filled in.
        mean: Mean over the passes; with softmax, probabilities.
        variance: Variance over the passes; None with one pass.
        std: Standard deviation over the passes; None with one pass.
        predictive_entropy: Entropy of the mean over the last dimension, in nats; None without softmax.
        expected_entropy: Mean of the entropies of the passes, the uncertainty of the data; None without softmax.
        mutual_information: The difference of the two, the uncertainty of the model; None without softmax.
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
        uncertainty: UncertaintyOption | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """Predicts with a stored model on the server.

        Args:
            model_id: UUID of a model of yours, or of a training in which you participate.
            inputs: The inputs, along the first dimension, at most 1.9 MB. The outputs must fit into a message, too.
            version: Number of updates of the global model so far; None for the latest one.
            tag: Instead of a version: the latest one that has this tag, for example "best".
            architecture: Name of a registered architecture; that of the model by default.
            uncertainty: McDropout(...), Swag(...), Ensemble(...) or NoUncertainty(); by default that of the model's
                training, or none.
            seed: Seed of the random numbers; None for another one each time.
            timeout: Seconds; None for the server's own limit.

        Raises:
            TensorError: The inputs have a dtype that the server does not accept, or are too large.
            ModelNotFound: You have no such model, or it has no such version.
            ArchitectureUnknown: The operator registered no such architecture.
            PosteriorMissing: The version has no SWAG posterior.
            PredictionFailed: The model, the architecture and the method are not compatible.
            PredictionLimit: The prediction takes more time or memory than the operator allows, or too many are waiting.
            FieldInvalid: The architecture does not accept these inputs.
            ResponseInvalid: The server answered with arrays that do not have their shapes.
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
        response = self._rpc.unary(self._rpc.inference.Predict, request, timeout)
        several, softmax = response.HasField("variance"), response.HasField("predictive_entropy")
        return Prediction(
            model_id=response.model.model_id,
            model_version=response.model.version,
            samples=response.samples,
            uncertainty=response.uncertainty,
            mean=_array(response.mean),
            variance=_array(response.variance) if several else None,
            std=_array(response.std) if several else None,
            predictive_entropy=_array(response.predictive_entropy) if softmax else None,
            expected_entropy=_array(response.expected_entropy) if softmax else None,
            mutual_information=_array(response.mutual_information) if softmax else None,
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
    try:
        return np.frombuffer(tensor.data, np.dtype("<f4")).reshape(tuple(tensor.shape)).astype(np.float32)
    except ValueError as error:
        text = f"The server's answer holds a tensor that is not valid: {error}"
        raise ResponseInvalid(grpc.StatusCode.INTERNAL, "RESPONSE_INVALID", text) from error
