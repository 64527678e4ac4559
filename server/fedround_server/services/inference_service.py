"""InferenceService."""

import math

from fedround.v1 import inference_pb2, inference_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.inference import Question
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import Dtype
from fedround_server.domain.prediction import Array
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert, fields, uncertainty

MAX_RANK = 16
MAX_SEED = 1 << 62

INPUT_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Predicts with stored models."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._inference = coordinator.inference

    async def Predict(self, request: inference_pb2.PredictRequest, context: Call) -> inference_pb2.PredictResponse:
        """Predicts outputs for inputs."""
        version, tag = fields.parse_version(request.version if request.HasField("version") else None, request.tag)
        chosen = request.uncertainty.WhichOneof("method")
        question = Question(
            user_id=caller().user_id,
            model_id=fields.parse_id("model_id", request.model_id),
            version=version,
            tag=tag,
            inputs=_inputs(request.inputs),
            uncertainty=uncertainty.read("uncertainty", request.uncertainty) if chosen else None,
            seed=fields.parse_at_most("seed", request.seed, MAX_SEED) if request.HasField("seed") else None,
            architecture=fields.parse_architecture("architecture", request.architecture),
        )
        answer = await self._inference.predict(question)
        found = answer.prediction
        response = inference_pb2.PredictResponse(
            model=convert.model_info(answer.version),
            mean=_tensor(found.mean),
            samples=found.samples,
            uncertainty=uncertainty.write(answer.uncertainty),
        )
        if found.spread is not None:
            response.variance.CopyFrom(_tensor(found.spread[0]))
            response.std.CopyFrom(_tensor(found.spread[1]))
        if found.entropies is not None:
            response.predictive_entropy.CopyFrom(_tensor(found.entropies[0]))
            response.expected_entropy.CopyFrom(_tensor(found.entropies[1]))
            response.mutual_information.CopyFrom(_tensor(found.entropies[2]))
        return response


def _inputs(message: inference_pb2.Tensor) -> Array:
    if message.dtype not in INPUT_DTYPES:
        raise FieldInvalid("inputs.dtype", f"{message.dtype[:40]!r} is not one of {', '.join(INPUT_DTYPES)}")
    dtype, shape = Dtype[message.dtype], tuple(message.shape)
    if not 1 <= len(shape) <= MAX_RANK or any(size < 1 for size in shape):
        raise FieldInvalid("inputs.shape", f"is {list(shape)[:20]}; must be 1 to {MAX_RANK} numbers, each >= 1")
    expected = math.prod(shape) * dtype.itemsize
    if len(message.data) != expected:
        raise FieldInvalid("inputs.data", f"has {len(message.data)} bytes; dtype and shape need {expected}")
    return Array(dtype, shape, message.data)


def _tensor(array: Array) -> inference_pb2.Tensor:
    return inference_pb2.Tensor(dtype=array.dtype.name, shape=array.shape, data=array.data)
