"""Reads and writes Uncertainty messages."""

from typing import Any

from fedround.v1 import aggregation_pb2
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.swag_moments import MAX_RANK
from fedround_server.domain.training import MAX_TARGET_NUM_UPDATES
from fedround_server.domain.uncertainty import Ensemble, MCDropout, NoUncertainty, Swag, Uncertainty, options_of
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
        return MCDropout(_samples(field, method, options.samples), options.softmax)
    if method == "swag":
        return _swag(field, message.swag)
    if method == "ensemble":
        return _ensemble(field, message.ensemble)
    return NoUncertainty()


def write(found: Uncertainty) -> aggregation_pb2.Uncertainty:
    """Encodes a method with its options."""
    options = options_of(found)
    if isinstance(found, Ensemble):
        options["members"] = [{"model_id": model_id, "version": version} for model_id, version in found.members]
    chosen: dict[str, Any] = {found.name: options}
    return aggregation_pb2.Uncertainty(**chosen)


def _swag(field: str, message: aggregation_pb2.Swag) -> Swag:
    every = fields.parse_at_most(f"{field}.swag.every", message.every, MAX_TARGET_NUM_UPDATES)
    rank = fields.parse_at_most(f"{field}.swag.rank", message.rank, MAX_RANK)
    return Swag(_samples(field, "swag", message.samples), message.softmax, every, rank)


def _ensemble(field: str, message: aggregation_pb2.Ensemble) -> Ensemble:
    if len(message.members) > MAX_VOTES:
        raise FieldInvalid(f"{field}.ensemble.members", f"are {len(message.members)}; at most {MAX_VOTES}")
    last_versions = fields.parse_at_most(f"{field}.ensemble.last_versions", message.last_versions, MAX_VOTES)
    members = tuple(
        (
            fields.parse_id(f"{field}.ensemble.members.model_id", member.model_id),
            member.version if member.HasField("version") else None,
        )
        for member in message.members
    )
    return Ensemble(members, last_versions, message.softmax)


def _samples(field: str, method: str, samples: int) -> int:
    if not 0 <= samples <= MAX_SAMPLES:
        raise FieldInvalid(f"{field}.{method}.samples", f"is {samples}; must be in 1..{MAX_SAMPLES}")
    return samples or DEFAULT_SAMPLES
