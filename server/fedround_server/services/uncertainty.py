"""Reads and writes Uncertainty messages."""

from typing import Any

from fedround.v1 import aggregation_pb2
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.swag import MAX_RANK
from fedround_server.domain.training import MAX_TARGET_NUM_UPDATES, Uncertainty
from fedround_server.services import fields

DEFAULT_SAMPLES = 30
MAX_SAMPLES = 1000
MAX_VOTES = 100


def read(field: str, message: aggregation_pb2.Uncertainty) -> Uncertainty:
    """Reads a method with its options and fills in the defaults.

    Raises:
        FieldInvalid: An option is out of range.
    """
    method = message.WhichOneof("method")
    if method == "mc_dropout":
        options = message.mc_dropout
        return Uncertainty(method, {"samples": _samples(field, method, options.samples), "softmax": options.softmax})
    if method == "swag":
        return Uncertainty(method, _swag(field, message.swag))
    if method == "ensemble":
        return Uncertainty(method, _ensemble(field, message.ensemble))
    return Uncertainty()


def write(found: Uncertainty) -> aggregation_pb2.Uncertainty:
    """Encodes a method with its options."""
    message = aggregation_pb2.Uncertainty()
    options = getattr(message, found.method)
    options.SetInParent()
    for name, value in found.options.items():
        if name == "members":
            options.members.extend(
                aggregation_pb2.EnsembleMember(model_id=model_id, version=version) for model_id, version in value
            )
        else:
            setattr(options, name, value)
    return message


def _swag(field: str, message: aggregation_pb2.Swag) -> dict[str, Any]:
    if message.every > MAX_TARGET_NUM_UPDATES:
        raise FieldInvalid(f"{field}.swag.every", f"is {message.every}; at most {MAX_TARGET_NUM_UPDATES}")
    if message.rank > MAX_RANK:
        raise FieldInvalid(f"{field}.swag.rank", f"is {message.rank}; at most {MAX_RANK}")
    samples = _samples(field, "swag", message.samples)
    return {"samples": samples, "softmax": message.softmax, "every": message.every, "rank": message.rank}


def _ensemble(field: str, message: aggregation_pb2.Ensemble) -> dict[str, Any]:
    if len(message.members) > MAX_VOTES:
        raise FieldInvalid(f"{field}.ensemble.members", f"are {len(message.members)}; at most {MAX_VOTES}")
    if message.last_versions > MAX_VOTES:
        raise FieldInvalid(f"{field}.ensemble.last_versions", f"is {message.last_versions}; at most {MAX_VOTES}")
    members = [
        [
            fields.parse_id(f"{field}.ensemble.members.model_id", member.model_id),
            member.version if member.HasField("version") else None,
        ]
        for member in message.members
    ]
    return {"members": members, "last_versions": message.last_versions, "softmax": message.softmax}


def _samples(field: str, method: str, samples: int) -> int:
    if not 0 <= samples <= MAX_SAMPLES:
        raise FieldInvalid(f"{field}.{method}.samples", f"is {samples}; must be in 1..{MAX_SAMPLES}")
    return samples or DEFAULT_SAMPLES
